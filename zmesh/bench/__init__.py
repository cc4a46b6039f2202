"""`zmesh bench`: load for an HTTP server, by the clock or by clients, with figures that say when not to believe them.

`command` is what the terminal calls. `loops` sends what `target` prepared, over `connection`s, at the moments of
`arrivals` that a `timer` rings; `figures` counts, `verdict` judges, `knee` searches and `report` says it.
"""

__all__: list[str] = []
