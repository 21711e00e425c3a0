"""Convert recordings to a LeRobot dataset, as `realman convert` does.

python examples/realman/convert_realman_data_to_lerobot.py --raw-dir /data/fold_towel --repo-id realman/fold_towel
"""

from realman import cli
from realman.data import convert

if __name__ == "__main__":
    cli.run(convert.main, convert.Args)
