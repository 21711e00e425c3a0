"""The doctor: looks through recordings or a dataset and says what would spoil training, and which option mends it.

Entry point: `python -m realman.data.inspection --data PATH`. Reading (`source`, `lerobot`) and measuring (`measure`, `motion`, `pictures`) run
in parallel, one episode at a time. The checks (`check_*`, listed in `diagnosis`) judge the measures of all episodes together;
`report`, `charts` and `terminal` show them.
"""
