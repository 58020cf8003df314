"""How often a message or an ad to a user is worth it, from the time to the return and what the next session holds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from features import columns as c

WEEK_H = 7 * 24

Floats = NDArray[np.float64]


class ActionValues(BaseModel):
    """What a session is worth for holding each action, in purchases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: float = Field(ge=0)
    click: float = Field(ge=0)
    like: float = Field(ge=0)
    cart: float = Field(ge=0)
    buy: float = Field(ge=0)

    @property
    def by_action(self) -> Floats:
        """In the order of columns.ACTIONS; [5]."""
        return np.array([getattr(self, action) for action in c.ACTIONS], np.float64)


class ContactsSpec(BaseModel):
    """When a contact is worth it. Units and reasons are in conf/base.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: ActionValues
    session_worth: float = Field(gt=0)
    most_per_week: float = Field(gt=0)


def contacts_per_week(
    returns_p: NDArray[np.floating[Any]], within_h: float, actions_p: NDArray[np.floating[Any]], spec: ContactsSpec
) -> Floats:
    """Contacts a week that are worth it. returns_p: [n] P(back within `within_h` hours); actions_p: [n, 5] → [n].

        contacts = min(most_per_week, returns a week · min(1, worth / session_worth))
        returns a week = -ln(1 - P(back)) · 168 / within_h
        worth = sum over actions of values · P(the next session holds it)

    A message can do no more than go with a visit, so there is at most one for each return that is expected, and less of
    one where a session is worth less than a message must win. Returns are counted at the mean hazard of the coming
    `within_h` hours: the rate of the Poisson process with the same chance of a return. A user who fades away is left
    alone more and more, one who comes daily is spared by the cap.
    """
    with np.errstate(divide="ignore"):
        returns = -np.log1p(-returns_p.astype(np.float64)) * WEEK_H / within_h
    worth = (actions_p.astype(np.float64) * spec.values.by_action).sum(axis=1) / spec.session_worth
    wanted: Floats = np.minimum(np.where(worth > 0, returns, 0.0) * np.minimum(worth, 1.0), spec.most_per_week)
    return wanted
