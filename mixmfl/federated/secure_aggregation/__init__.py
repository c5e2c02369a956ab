"""What both ends of secure aggregation agree on."""
