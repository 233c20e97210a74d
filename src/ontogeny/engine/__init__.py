"""Text generation: requests, scheduler, prefill and decode programs, prefix cache, sampler and stop strings.

The server runs `engine.Engine`, which batches requests continuously. The command line runs `generate.generate`, which
decodes one fixed batch in a compiled loop. Both draw tokens by `sampling` and turn them into text by `text_stream`.
"""
