"""Speed of the patches operators of em-kernels; options as for `python -m em_kernels.bench`."""

import sys

from em_kernels.bench import main

if __name__ == "__main__":
    sys.exit(main(["patches", *sys.argv[1:]]))
