"""How many pieces work is cut into: shuffle partitions from bytes, row groups from rows and world sizes."""

from dataclasses import dataclass
from math import ceil, lcm

from features.contracts import ContractError

EVENT_GROWTH = 4  # an encoded event in memory against its compressed bytes in sessions_v1

_MIB = 1 << 20
_FEWEST_BUCKETS = 16
_ROOM_TO_GROW = 4  # a log grows, its buckets are not dealt anew


def partitions_for(input_bytes: int, partition_mib: int, least: int) -> int:
    """Shuffle partitions so that each takes in at most about `partition_mib` of input, at least `least`."""
    return max(least, ceil(input_bytes / (partition_mib * _MIB)))


def buckets_for(event_bytes: int, bucket_mib: int) -> int:
    """Buckets of users, a power of two from 16, so that each holds about a quarter of `bucket_mib` or less."""
    return power_of_two(max(_FEWEST_BUCKETS, ceil(_ROOM_TO_GROW * event_bytes / (bucket_mib * _MIB))))


def power_of_two(least: int) -> int:
    """The smallest power of two from `least`, which is 1 or more.

    Of two such numbers one divides the other: users dealt to m places by a hash modulo m, and to n by the same hash
    modulo n, meet in gcd(m, n) = min(m, n) groups.
    """
    return 1 << (least - 1).bit_length()


@dataclass(frozen=True)
class RowGroupPlan:
    """Rows of each row group of one split; sizes differ by at most one."""

    sizes: tuple[int, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of the first row of each group."""
        starts = [0]
        for size in self.sizes[:-1]:
            starts.append(starts[-1] + size)
        return tuple(starts)


def plan_row_groups(
    n_rows: int, row_bytes: int, world_sizes: tuple[int, ...], group_mib: int, name: str
) -> RowGroupPlan:
    """Cut n_rows into equal row groups of at most about group_mib, their number a multiple of every world size.

    A rank reads the row groups whose index is its rank modulo the world size; so all ranks of a planned
    world size get the same number of groups, and numbers of rows that differ by at most one a group.
    name: table and split, for the error.

    Raises:
        ContractError: fewer rows than groups are needed, so that a rank would have none.
    """
    unit = lcm(*world_sizes)
    if n_rows < unit:
        raise ContractError(
            f"{name}: {n_rows} rows cannot be shared among sequences.world_sizes = {list(world_sizes)}, which need "
            f"{unit} row groups. Take a longer log or lower sequences.world_sizes."
        )
    wanted = max(1, ceil(n_rows * row_bytes / (group_mib * _MIB * unit)))
    n_groups = unit * min(wanted, n_rows // unit)  # no group is empty, even where one row is larger than a group
    small, larger = divmod(n_rows, n_groups)
    return RowGroupPlan(tuple(small + (index < larger) for index in range(n_groups)))
