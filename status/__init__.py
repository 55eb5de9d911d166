"""What can be seen: a reader of the database, figures, pages, the status servers, leaderboards. It changes nothing.

May import all but `doctor` and the programs. Read: `reader`, `panels`, `figures`, `board`, `pages` with `templates/`,
`server`.
"""
