"""Source datasets: each gives the same splits (d1, d2, test, probe) with the same columns.

`ingest` reads data of any form as rows; the rest draws the splits from them.

May import hub_client, models, world, recipe, schema, errors, text.
"""
