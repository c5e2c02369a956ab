"""The commands: each parses its arguments, calls one function of `mixmfl` and reports."""
