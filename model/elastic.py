"""Ranks that may be lost and added while they train, behind the seam of model.workers; Horovod's elastic driver."""

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from model.spec import TrainingSpec
from model.workers import HorovodWorkers, RankLostError

T = TypeVar("T")


class ElasticWorkers(HorovodWorkers):
    """Ranks started by horovodrun --min-np. `rank` and `size` change whenever ranks were lost or added.

    Horovod's driver takes a host off its list when a rank on it fails; hosts that its discovery script adds later are
    started on, and this side hears of them in `look_for_changes`.
    """

    is_elastic = True

    def __init__(self, spec: TrainingSpec | None = None) -> None:
        """spec: how gradients are exchanged, but for `fusion_mib` and `cycle_ms`: see `_tune`."""
        super().__init__(spec)
        from horovod.common.elastic import State
        from horovod.common.exceptions import HorovodInternalError

        # Horovod's own states broadcast and roll back tensors; here the training does, so this one only carries news.
        self._news = State(
            bcast_object=lambda news: self.gather([int(part) for part in news])[0], get_rank=self._hvd.rank
        )
        self._news.save = self._news.restore = self._news.sync = lambda: None
        self._news.register_reset_callbacks([self._take_place])
        self._lost_error = HorovodInternalError

    def persevere(self, attempt: Callable[[], T]) -> T:
        """See Workers."""
        from horovod.tensorflow import elastic

        def attempt_once(_: object) -> T:
            try:
                return attempt()
            except RankLostError as error:
                raise self._lost_error(str(error)) from error

        result: T = elastic.run(attempt_once)(self._news)
        return result

    def look_for_changes(self) -> None:
        """See Workers."""
        self._news.check_host_updates()

    def _tune(self, settings: Mapping[str, str]) -> None:
        # With both of them set, Horovod 0.28.1 crashes when it starts anew after a loss: its ParameterManager writes to
        # a variable that the first start had taken away. So elastic ranks run without.
        for name in settings:
            os.environ.pop(name, None)

    def _pin(self) -> None:
        # Ranks come and go, and a new one may get a place that another still fills.
        return

    def _take_place(self) -> None:
        self.rank, self.size = self._hvd.rank(), self._hvd.size()
