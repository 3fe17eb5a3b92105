"""The service: an index, its enrolments and its model over HTTP, see docs/service.md."""
