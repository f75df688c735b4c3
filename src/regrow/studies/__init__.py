"""Studies: what a file asks for, checked, and expanded into cells and jobs."""
