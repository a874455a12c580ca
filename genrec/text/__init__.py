"""Text and query encoders."""
