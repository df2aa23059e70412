"""Speed of the crops operators of em-kernels; options as for `python -m em_kernels.bench`."""

import sys

from em_kernels.bench import main

if __name__ == "__main__":
    sys.exit(main(["crops", *sys.argv[1:]]))
