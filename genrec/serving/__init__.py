"""HTTP and Ray."""
