"""Files scored offline: read in parts, answered on all cores, written so that a killed run can go on where it was.

`run.score` decides where the answers go, and `running` has the loop over the parts:
- `inputs` finds the files; `tabular` (Parquet, Arrow), `csvfile` and `ndjson` read them; `lines` cuts text into rows;
- `plan` decides and pins everything that the output depends on;
- `answering` turns a part of the input into a record batch, `encoding` that into bytes;
- `work` keeps finished parts, and makes the output of them.
"""
