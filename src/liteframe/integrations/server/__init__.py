"""`liteframe serve`: questions about videos over HTTP, as OpenAI's chat completions and as a web page.

1. guard     who may ask: key, host, origin; counts what was answered
2. schema    what a request may hold, and what it wants
3. media     the video that it names: an upload, a data: URL, a file of an allowed folder
4. engine    a bounded queue and the one thread that owns the model
5. replies   answers as OpenAI's objects and server-sent events
6. app       the routes, which put these together; launch starts them

Needs the extra ``serve``. Only `settings` and `launch` are imported by the command line before that is known.
"""
