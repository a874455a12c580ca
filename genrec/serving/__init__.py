"""Bundle, living catalogue, event store, HTTP server and demo page."""
