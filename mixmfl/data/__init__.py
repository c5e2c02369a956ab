"""Folders and files to cases, and cases to arrays on one grid."""
