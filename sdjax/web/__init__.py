"""The image server: a page to draw on, the web UI's API and OpenAI's images API; `app.py` lists its addresses."""
