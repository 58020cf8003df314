"""The Python processes of Spark's in which tasks run, one after another."""

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar
from zipimport import zipimporter

_P = ParamSpec("_P")
_T = TypeVar("_T")


def in_worker(kernel: Callable[_P, Iterator[_T]]) -> Callable[_P, Iterator[_T]]:
    """A function for `mapInArrow`, after which the process begins its next task without delay.

    Before each task Spark's worker has the finders of modules look anew what there is, and that of a zip archive then
    reads the archive's whole directory (Python 3.10 and later): 0.1 s a task for pyspark.zip, of which there are
    fourteen. So they are dropped; the next import makes those anew that it needs.
    """

    @wraps(kernel)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
        try:
            yield from kernel(*args, **kwargs)
        finally:
            for path in [path for path, finder in sys.path_importer_cache.items() if isinstance(finder, zipimporter)]:
                sys.path_importer_cache.pop(path, None)

    return run
