"""The order of interactions in time, by the numbers in the file, for every model alike.

RecBole keeps timestamps as float32 and sorts by them. Times of today that are less than about two
minutes apart in seconds, or in milliseconds, then lose their order, so that a user's last
interaction may not be the one that is tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils import FeatureSource, FeatureType

from recbole_idiomoe.base.errors import DataError

# A median of 1e11 is the year 5138 in seconds and 1973 in milliseconds.
_UNITS = ((1e17, "nanoseconds", 1e9), (1e14, "microseconds", 1e6), (1e11, "milliseconds", 1e3))


def time_unit(times: np.ndarray) -> tuple[str, float]:
    """The unit of Unix times (n,), found from their median, and how many of it make a second."""
    typical = float(np.median(np.abs(times))) if len(times) else 0.0
    found = ((name, per_second) for least, name, per_second in _UNITS if typical >= least)
    return next(found, ("seconds", 1.0))


def read_dates(dates: pd.Series[str], where: str) -> pd.Series[pd.Timestamp]:
    """Read ISO 8601 dates (n,), to the nanosecond; a date without a zone is UTC.

    Raises:
        DataError: a text is no date; the message has ``where`` it stands and its row.
    """
    found = pd.to_datetime(dates, utc=True, format="ISO8601", errors="coerce")
    if found.isna().any():
        row = int(found.isna().to_numpy().argmax())
        raise DataError(
            f"{where}: {dates.iloc[row]!r:.60} in row {row + 1} is no date such as 2024-05-31 or "
            "2024-05-31T18:30:00Z between the years 1678 and 2261; fix that row."
        )
    return found


class TimeOrdered:
    """Makes a sequential dataset of RecBole sort by the file's own times.

    The table of interactions is ordered by user and time once, right after the filters, in float64.
    RecBole's later sorts by float32 are stable, so they keep this order. Numbers of nanoseconds are
    exact to 256 ns, which is what float64 has of them; dates are exact. Interactions of one user
    with equal times keep the order of the file. Milliseconds, microseconds and nanoseconds are
    turned into seconds, and so are ISO dates in a column of type ``token``.

    Attributes:
        time_unit: what the file has: ``seconds``, ..., ``nanoseconds`` or ``dates``.
        left_out: number of rows of the files that RecBole left out, by what they are.
    """

    config: Any
    inter_feat: Any
    uid_field: str
    iid_field: str
    time_field: str

    def __init__(self, config: Any) -> None:
        self.time_unit = "seconds"
        self.left_out: dict[str, int] = {}
        self._target_times: np.ndarray | None = None
        super().__init__(config)  # type: ignore[call-arg]

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        super()._load_inter_feat(token, dataset_path)  # type: ignore[misc]
        fields: Any = self
        if fields.field2type.get(self.time_field) == FeatureType.TOKEN:
            where = f"{Path(dataset_path) / token}.inter, column {self.time_field!r}"
            dates = read_dates(self.inter_feat[self.time_field], where)
            seconds = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
            self.inter_feat[self.time_field] = seconds
            if fields.benchmark_filename_list is None:  # nanoseconds are lost in float64
                order = np.argsort(dates.to_numpy(), kind="stable")
                self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)
            fields.field2type[self.time_field] = FeatureType.FLOAT
            fields.field2bucketnum[self.time_field] = 2
            self.time_unit = "dates"

    def _load_feat(self, filepath: str, source: Any) -> Any:
        table = super()._load_feat(filepath, source)  # type: ignore[misc]
        ids = {FeatureSource.USER: self.uid_field, FeatureSource.ITEM: self.iid_field}
        if table is not None and ids.get(source) in table:
            self._leave_out(
                f"rows of {Path(filepath).name} with a repeated id",
                table[ids[source]].duplicated().sum(),
            )
        return table

    def _leave_out(self, what: str, count: int) -> None:
        if count:
            self.left_out[what] = int(count)

    def _filter_inter_by_user_or_item(self) -> None:
        table = self.inter_feat
        for name, field in (("user", self.uid_field), ("item", self.iid_field)):
            described = getattr(self, f"{name}_feat", None)
            if described is None or self.config["filter_inter_by_user_or_item"] is not True:
                continue
            without = ~table[field].isin(described[field])
            what = f"interactions whose {name} has no row in the .{name} file"
            self._leave_out(what, without.sum())
        super()._filter_inter_by_user_or_item()  # type: ignore[misc]

    def _remap_ID_all(self) -> None:
        super()._remap_ID_all()  # type: ignore[misc]
        self._order_interactions()

    def _order_interactions(self) -> None:
        """Order the loaded table by user and time; ids are numbers, and times are raw here."""
        if self.time_field not in self.inter_feat:
            return  # RecBole names the missing column
        by = [self.uid_field, self.time_field]
        self.inter_feat = self.inter_feat.sort_values(by, kind="stable", ignore_index=True)
        self._convert_times()

    def _convert_times(self) -> None:
        if self.time_unit != "dates":
            self.time_unit, per_second = time_unit(self.inter_feat[self.time_field].to_numpy())
            self.inter_feat[self.time_field] /= per_second

    def _change_feat_format(self) -> None:
        users, times = (self.inter_feat[field] for field in (self.uid_field, self.time_field))
        super()._change_feat_format()  # type: ignore[misc]
        if times.dtype == np.float64:  # not split into buckets by the setting discretization
            # RecBole makes a row of each interaction but a user's first.
            self._target_times = times.to_numpy()[users.duplicated()]

    def sort(self, by: str | list[str], ascending: bool | list[bool] = True) -> None:
        """Sort as RecBole does, but by exact times where it sorts all rows by time."""
        if by == self.time_field and self._target_times is not None:
            self.inter_feat = self.inter_feat[np.argsort(self._target_times, kind="stable")]
        else:
            super().sort(by=by, ascending=ascending)  # type: ignore[misc]
