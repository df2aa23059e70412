"""Speed of the divergence operators of em-kernels; options as for `python -m em_kernels.bench`."""

import sys

from em_kernels.bench import main

if __name__ == "__main__":
    sys.exit(main(["divergence", *sys.argv[1:]]))
