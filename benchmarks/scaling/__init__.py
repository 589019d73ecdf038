"""How the cost of identity and audit grows with files, bundles, bytes and workers: `make bench-scaling`.

* `measure` runs jobs of growing size, and keeps what each took.
* `growth` knows slopes, and what a slope must not exceed.
* `limits` are what the services publish of theirs.
* `petabyte` is, on paper, a job with a thousand workers against these limits; `paper` says it in words.
* `plot` draws curves, `page` writes docs/scaling.md.
"""
