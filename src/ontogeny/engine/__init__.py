"""Text generation: requests, scheduler, steps on a CPU or an accelerator, prefix cache, sampler and stop strings.

`engine.Engine` batches requests continuously, on a thread of its own in the server and on that of the caller in
`generate.generate`, which the command line runs. Tokens are drawn by `sampling` and turned into text by `text_stream`.
"""
