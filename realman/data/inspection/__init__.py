"""Look through recordings or a dataset for what would spoil training.

Entry point: `realman inspect` (`python -m realman.data.inspection --data PATH`). Reading (`inspected_data`, `lerobot`)
and measuring (`measure`, `motion`, `images`) run in parallel, one episode at a time. The checks (`check_*`, listed in
`diagnosis`) judge the measures of all episodes together. Each finding names the option that fixes it. `report`,
`charts` and `terminal` show the findings.
"""
