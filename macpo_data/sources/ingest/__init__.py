"""The one door for preference data: any file, folder or Hub dataset to canonical rows.

`files` and `splits` read records; `detect` finds their form; `readers` turns a record into a `Row`,
or says why not; `door` does all of it and keeps the account.
"""
