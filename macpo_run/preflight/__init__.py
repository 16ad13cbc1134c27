"""What the steps of a command need, looked at before the first of them, all at once and in seconds.

Nothing is made or downloaded but small files, and what is done needs nothing: a finished run needs
no model. `macpo doctor` shows the same list for a whole recipe.
"""
