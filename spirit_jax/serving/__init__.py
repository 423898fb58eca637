"""A web server: OpenAI-shaped endpoints and a page, on one engine. Needs the extra `serve`."""
