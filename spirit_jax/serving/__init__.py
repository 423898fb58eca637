"""A web server: OpenAI-compatible endpoints and a page, on one engine. Needs the extra `serve`."""
