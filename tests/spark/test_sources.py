"""Source maps: each public log's format on a few literal lines, categories from a second file, and the real slices.

The real slices lie in a folder that INTEREST_DATA names; without it, or without a file, their tests are skipped.
"""

import json
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from features import columns as c
from features.categories import CategoryMap, read_categories, with_categories
from features.contracts import REJECTED_EVENTS, SESSIONS, ContractError
from features.events import CleaningSpec, RunDays, good_events, parse_events, rejected_events
from features.sources import SourceMap, read_log
from jobs.inputs import load_source
from jobs.run import main as run_main
from jobs.sessionize import Sessionized, main, sessionize
from jobs.settings import CONF_DIR, UsageError, load_settings
from jobs.store import Store
from tests.logs import SOURCE, line, write_log

SPEC = CleaningSpec(min_date=date(1995, 1, 1), future_tolerance_s=300, unknown_action="reject")
ALL_DAYS = RunDays(date(1995, 1, 1), date(2030, 1, 1), lateness_days=20_000)

# Source map: the lines of its log, its good events (user, item, category, action, time), and what is refused.
LOGS: dict[str, tuple[list[str], list[tuple[str, ...]], list[str]]] = {
    "movielens-1m": (
        ["1::1193::5::978300760", "1::661::3::978302109", "2::1193::4::978298413", "2::1193"],
        [
            ("2", "1193", "1193", "like", "2000-12-31 21:33:33"),
            ("1", "1193", "1193", "like", "2000-12-31 22:12:40"),
            ("1", "661", "661", "view", "2000-12-31 22:35:09"),
        ],
        ["malformed_row"],
    ),
    "movielens-100k": (
        ["196\t242\t3\t881250949", "186\t302\t5\t891717742", "22\t377\t9\t878887116"],
        [
            ("196", "242", "242", "view", "1997-12-04 15:55:49"),
            ("186", "302", "302", "like", "1998-04-04 19:22:22"),
        ],
        ["unknown_action"],
    ),
    "movielens-100k-recbole": (
        [
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            "196\t242\t3\t881250949",
            "186\t302\t5\t891717742",
        ],
        [
            ("196", "242", "242", "view", "1997-12-04 15:55:49"),
            ("186", "302", "302", "like", "1998-04-04 19:22:22"),
        ],
        [],
    ),
    "taobao": (
        [
            "1,10,7,pv,1511658000",
            "1,11,7,cart,1511658001",
            "1,12,8,fav,1511658002",
            "1,13,8,buy,1511658003",
            "1,13,8,buy",
        ],
        [
            ("1", "10", "7", "view", "2017-11-26 01:00:00"),
            ("1", "11", "7", "cart", "2017-11-26 01:00:01"),
            ("1", "12", "8", "like", "2017-11-26 01:00:02"),
            ("1", "13", "8", "buy", "2017-11-26 01:00:03"),
        ],
        ["malformed_row"],
    ),
    "rees46": (
        [
            "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session",
            "2019-10-01 00:00:00 UTC,view,44600062,2103,,shiseido,35.79,541312140,72d7",
            "2019-10-01 00:00:01 UTC,cart,44600062,2103,,shiseido,35.79,541312140,72d7",
            '2019-10-01 00:00:02 UTC,remove_from_cart,44600062,2103,a.b,"x ""y"", z",35.79,541312140,72d7',
            "2019-10-01 00:00:03 UTC,purchase,3900821,2053,a.b,aqua,33.20,541312140,",
            "2019-10-01 00:00:04 UTC,view,3900821,2053,a.b,aqua,33.20,5413",
        ],
        [
            ("541312140", "44600062", "2103", "view", "2019-10-01 00:00:00"),
            ("541312140", "44600062", "2103", "cart", "2019-10-01 00:00:01"),
            ("541312140", "44600062", "2103", "view", "2019-10-01 00:00:02"),
            ("541312140", "3900821", "2053", "buy", "2019-10-01 00:00:03"),
        ],
        ["malformed_row"],
    ),
    "retailrocket": (
        [
            "timestamp,visitorid,event,itemid,transactionid",
            "1433221332117,257597,view,355908,",
            "1433221332118,257597,addtocart,355908,",
            "1433221332119,257597,transaction,355908,4000",
            "1433221332.5,,view,355908,",
        ],
        [
            ("257597", "355908", "355908", "view", "2015-06-02 05:02:12.117"),
            ("257597", "355908", "355908", "cart", "2015-06-02 05:02:12.118"),
            ("257597", "355908", "355908", "buy", "2015-06-02 05:02:12.119"),
        ],
        ["no_user"],
    ),
    "otto": (
        [
            '{"session": 12, "events": [{"aid": 5, "ts": 1661724000278, "type": "clicks"}, '
            '{"aid": 6, "ts": 1661724000279, "type": "carts"}, {"aid": 6, "ts": 1661724000280, "type": "orders"}]}',
            '{"session": 13, "events": [{"aid": 5, "ts": 1661724000281, "type": "clicks"}, {"aid": 7}]}',
            '{"session": 14, "events": []}',
            '{"session": 15, "events": [{"aid": 5, "ts": 16617',
        ],
        [
            ("12", "5", "5", "click", "2022-08-28 22:00:00.278"),
            ("12", "6", "6", "cart", "2022-08-28 22:00:00.279"),
            ("12", "6", "6", "buy", "2022-08-28 22:00:00.28"),
            ("13", "5", "5", "click", "2022-08-28 22:00:00.281"),
        ],
        ["bad_time", "malformed_row", "no_item"],
    ),
    "yoochoose-clicks": (
        ["1,2014-04-07T10:51:09.277Z,214536502,0", "1,2014-04-07T10:54:09.868Z,214536500,S", "1,10:54,2,0"],
        [
            ("1", "214536502", "0", "click", "2014-04-07 10:51:09.277"),
            ("1", "214536500", "S", "click", "2014-04-07 10:54:09.868"),
        ],
        ["bad_time"],
    ),
    "yoochoose-buys": (
        ["420374,2014-04-06T18:44:58.314Z,214537888,12462,1", "420374,2014-04-06T18:44:58.325Z,214537850"],
        [("420374", "214537888", "214537888", "buy", "2014-04-06 18:44:58.314")],
        ["malformed_row"],
    ),
    "amazon-reviews": (
        ["user_id,position,item_id,timestamp", "1,0,B1,1318896000", "1,x,B2,1318896000"],
        [("1", "B1", "B1", "buy", "2011-10-18 00:00:00")],
        ["malformed_row"],
    ),
    "deskdrop": (
        [
            "timestamp,eventType,contentId,personId,sessionId,userAgent,userRegion,userCountry",
            "1465413032,VIEW,-349,-884,1264,,,",
            '1465413742,COMMENT CREATED,310,-876,1395,"Mozilla/5.0 (KHTML, like Gecko)",SP,BR',
        ],
        [
            ("-884", "-349", "-349", "view", "2016-06-08 19:10:32"),
            ("-876", "310", "310", "click", "2016-06-08 19:22:22"),
        ],
        [],
    ),
    "template": (
        ["user,item,category,event,time", "ann,i1,c1,page_view,1709294400", "ann,i1,c1,purchase,1709294401"],
        [
            ("ann", "i1", "c1", "view", "2024-03-01 12:00:00"),
            ("ann", "i1", "c1", "buy", "2024-03-01 12:00:01"),
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_in_its_format(spark: SparkSession, tmp_path: Path, name: str) -> None:
    lines, expected, reasons = LOGS[name]
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    source = load_source(name)
    parsed = parse_events(read_log(spark, source, [str(tmp_path / "log")]), source, SPEC, ALL_DAYS)
    columns = (c.USER_ID, c.ITEM_ID, c.CATEGORY_ID, c.ACTION, c.EVENT_TIME)
    good = good_events(parsed).withColumn(c.EVENT_TIME, F.col(c.EVENT_TIME).cast("string")).orderBy(c.EVENT_TIME)
    assert [tuple(row) for row in good.select(*columns).collect()] == expected
    refused = rejected_events(parsed).collect()
    assert sorted(row[c.REASON] for row in refused) == reasons
    assert all(row[c.RAW] in lines for row in refused if row[c.REASON] == "malformed_row" and row[c.RAW][0] != "{")
    # The same count where nothing wants the other columns: the reader may then skip them.
    assert parsed.select(c.REASON).where(F.col(c.REASON).isNotNull()).count() == len(reasons)


def test_every_map_is_tested_here() -> None:
    assert {file.stem for file in (CONF_DIR / "sources").glob("*.yaml")} == {*LOGS, "simulated"}


def test_a_torn_row_is_refused_where_only_some_columns_are_used(spark: SparkSession, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", line() + ",x,y", "ann,i1,c1,pv,1709294400,x", header="a,b,c,d,e,f,g")
    source = SOURCE.model_copy(
        update={
            "columns": {"user_id": "a", "item_id": "b", "action": "d", "event_time": "e"},
            "actions": {"pv": "view"},
        }
    )
    parsed = parse_events(read_log(spark, source, [log]), source, SPEC, ALL_DAYS).drop(c.RAW)
    assert sorted(str(row[c.REASON]) for row in parsed.select(c.USER_ID, c.REASON).collect()) == [
        "None",
        "malformed_row",
    ]


# Categories: map, content of the file, and the item → category that it says.
MOVIES = "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Ju\u00e9 (1995)::Drama\n3::No genre::\n"
CATEGORY_FILES: dict[str, tuple[str, dict[str, str]]] = {
    "movielens-1m": (MOVIES, {"1": "Animation", "2": "Drama"}),
    "movielens-100k": (
        "1|Toy Story (1995)|01-Jan-1995||http://x|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
        "9|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
        "3|None|01-Jan-1995||http://x|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n",
        {"1": "Animation", "9": "unknown"},
    ),
    "movielens-100k-recbole": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's Comedy\n2\tGoldenEye\t1995\tAction Adventure Thriller\n",
        {"1": "Animation Children's Comedy", "2": "Action Adventure Thriller"},
    ),
    "retailrocket": (
        "timestamp,itemid,property,value\n1435460400000,1,categoryid,20\n999460400000,1,categoryid,30\n"
        "1435460400000,2,790,n55\n1435460400000,3,categoryid,7\n1435460400000,3,categoryid,10\n",
        {"1": "30", "3": "10"},
    ),
    "amazon-reviews": (
        '{"4": [1, 2, 3], "83": ["Hair", 5], "7": [], "8": "Nail"}',
        {"4": "1", "83": "Hair", "8": "Nail"},
    ),
}


def categories(spark: SparkSession, layout: CategoryMap, path: Path, content: str) -> list[tuple[str, str]]:
    path.write_bytes(content.encode("latin-1"))
    return sorted((row[c.ITEM_ID], row[c.CATEGORY_ID]) for row in read_categories(spark, layout, [str(path)]).collect())


@pytest.mark.parametrize("name", CATEGORY_FILES)
def test_categories_of_a_log_in_their_format(spark: SparkSession, tmp_path: Path, name: str) -> None:
    content, expected = CATEGORY_FILES[name]
    layout = load_source(name).categories
    assert layout is not None
    assert dict(categories(spark, layout, tmp_path / "items", content)) == expected


def test_one_category_an_item_whatever_the_order_of_rows(spark: SparkSession, tmp_path: Path) -> None:
    layout = CategoryMap(format="json", item="sku", category="kinds")
    rows = ['{"sku": 1, "kinds": ["b", "z"]}', '{"sku": 1, "kinds": "a"}', '{"sku": 2}', '{"sku": 3, "ki']
    for k, lines in enumerate((rows, rows[::-1])):
        assert categories(spark, layout, tmp_path / f"{k}.json", "\n".join(lines)) == [("1", "a")]


def test_a_line_that_does_not_fit_the_format_gives_no_category(spark: SparkSession, tmp_path: Path) -> None:
    lines = "1,Alien,Horror\n2,Graduate, The (1967),Drama\n3,Heat\n4,Up,Animation\n"
    layout = {"format": "csv", "item": "item", "category": "kind"}
    named = CategoryMap(**layout, header=False, names=("item", "title", "kind"))
    headed = CategoryMap(**layout)
    assert categories(spark, named, tmp_path / "named.csv", lines) == [("1", "Horror"), ("4", "Animation")]
    assert categories(spark, headed, tmp_path / "headed.csv", f"item,title,kind\n{lines}") == [
        ("1", "Horror"),
        ("4", "Animation"),
    ]


def test_an_item_without_category_has_none_and_no_event_is_repeated(spark: SparkSession, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", line(item="i1"), line(item=" i2", category="own"), line(item="i1"))
    items = write_log(tmp_path / "items.csv", "i1,c9", "i1,c8", "i3,c7", header="item,kind")
    layout = CategoryMap(format="csv", item="item", category="kind")
    parsed = parse_events(read_log(spark, SOURCE, [log]), SOURCE, SPEC, ALL_DAYS)
    joined = with_categories(parsed, read_categories(spark, layout, [items]))
    assert joined.columns == parsed.columns
    assert sorted((row[c.ITEM_ID], row[c.CATEGORY_ID]) for row in joined.collect()) == [
        ("i1", "c8"),
        ("i1", "c8"),
        ("i2", None),
    ]
    ids = [sorted(row[c.EVENT_ID] for row in frame.collect()) for frame in (parsed, joined)]
    assert ids[0] == ids[1]


def test_categories_reach_the_sessions_through_the_command_line(spark: SparkSession, tmp_path: Path) -> None:
    assert spark is not None
    (tmp_path / "u.data").write_text("196\t1\t3\t881250949\n196\t5\t4\t881250950\n")
    (tmp_path / "u.item").write_text(CATEGORY_FILES["movielens-100k"][0])
    flags = ["--source", "movielens-100k", "--input", str(tmp_path / "u.data"), "--date", "1997-12-04", "--bootstrap"]
    root = str(tmp_path / "out")
    assert main(["--root", root, *flags, "--categories", str(tmp_path / "u.item")]) == 0
    store = Store(root)
    found = [
        (event[c.ITEM_ID], event[c.CATEGORY_ID])
        for table in ("sessions_v1", "open_sessions_v1")
        for row in spark.read.parquet(store.path(table, "1997-12-04")).collect()
        for event in row[c.EVENTS]
    ]
    assert found == [("1", "Animation"), ("5", None)]
    manifest = store.manifest(SESSIONS.name, "1997-12-04", "")
    assert manifest.counters["rows_with_category"] == 1
    (seen,) = (found for path, found in manifest.inputs.items() if path.endswith("u.item"))
    # A corrected file as long as before, and then a day without an event.
    text = (tmp_path / "u.item").read_bytes()
    (tmp_path / "u.item").write_bytes(text.replace(b"Toy Story", b"toy story"))
    assert main(["--root", root, *flags, "--categories", str(tmp_path / "u.item")]) == 0
    again = store.manifest(SESSIONS.name, "1997-12-04", "")
    assert len({seen, *(found for path, found in again.inputs.items() if path.endswith("u.item"))}) == 2
    assert again.hash != manifest.hash
    (tmp_path / "u.data").write_text("")
    flags = [*flags[:4], "--date", "1997-12-05", "--categories", str(tmp_path / "u.item")]
    assert main(["--root", root, *flags]) == 0


def test_categories_that_fit_no_item_are_refused(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spark is not None
    (tmp_path / "u.data").write_text("196\t7\t3\t881250949\n")
    (tmp_path / "u.item").write_text(CATEGORY_FILES["movielens-100k"][0])
    common = ["--root", str(tmp_path / "out"), "--input", str(tmp_path / "u.data"), "--date", "1997-12-04"]
    for source, path, code, said in (
        ("movielens-100k", "u.item", 3, "no event's item has a category there"),
        ("movielens-100k", "none.item", 3, "--categories"),
        ("taobao", "u.item", 2, "has no categories: part"),
    ):
        flags = ["--source", source, "--bootstrap", "--categories", str(tmp_path / path)]
        assert main([*common, *flags]) == code
        assert said in " ".join(capsys.readouterr().err.split())
    assert Store(str(tmp_path / "out")).dates(SESSIONS.name) == []
    assert run_main(["--root", "never-made", "--demo", "--categories", "x"]) == 2


def test_a_category_file_without_the_column_is_named(spark: SparkSession, tmp_path: Path) -> None:
    items = write_log(tmp_path / "items.csv", "i1,c9", header="item,kind")
    with pytest.raises(ContractError, match=r"items\.csv has no column sort; its columns are: item, kind"):
        read_categories(spark, CategoryMap(format="csv", item="item", category="sort"), [items])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"explode": "events"}, "needs format: json and a column events"),
        ({"explode": "events", "format": "json"}, "needs format: json and a column events"),
        ({"categories": {"format": "csv", "item": "i"}}, "give item, and either category or flags"),
        ({"categories": {"format": "json_object", "item": "i"}}, "a json_object has no columns"),
        ({"categories": {"format": "csv", "item": "i", "category": "c", "header": False}}, "needs names"),
    ],
)
def test_the_new_parts_of_a_map_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceMap.model_validate({**SOURCE.model_dump(), **change})


def test_an_unknown_map_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"amazon-reviews, deskdrop, movielens-100k"):
        load_source("netflix")


def real(*parts: str) -> str:
    """A file of the real logs, or skip: the reason is in pytest's summary."""
    folder = os.environ.get("INTEREST_DATA")
    if not folder:
        pytest.skip("INTEREST_DATA is not set: name the folder of the real logs")
    path = Path(folder, *parts)
    if not path.exists():
        pytest.skip(f"INTEREST_DATA has no {'/'.join(parts)}")
    return str(path)


def sessionized(
    spark: SparkSession, root: Path, source: str, log: str, first: str, last: str, categories: Sequence[str] = ()
) -> tuple[Sessionized, dict[str, int]]:
    days = date.fromisoformat(first), date.fromisoformat(last)
    done = sessionize(spark, load_settings(), load_source(source), [log], str(root), *days, True, categories)
    counters = dict(Store(str(root)).manifest(SESSIONS.name, last, "").counters)
    print(
        source, json.dumps({name: n for name, n in counters.items() if n}), f"sessions {done.n_sessions + done.n_open}"
    )
    return done, counters


def test_real_taobao(spark: SparkSession, tmp_path: Path) -> None:
    log = real("taobao-2h", "UserBehavior.csv.gz")
    done, counters = sessionized(spark, tmp_path, "taobao", log, "2017-11-26", "2017-11-26")
    assert (done.rows_read, done.rejected) == (110_300, {})
    assert counters["rows_with_category"] == 110_300


def test_real_rees46_whose_last_row_is_cut_off(spark: SparkSession, tmp_path: Path) -> None:
    log = real("rees46-3h", "2019-Oct.csv.gz")
    done, counters = sessionized(spark, tmp_path, "rees46", log, "2019-10-01", "2019-10-01")
    assert (done.rows_read, done.rejected) == (17_435, {"malformed_row": 1})
    assert counters["events"] + counters["duplicates"] == 17_434
    cut_off = "2019-10-01 02:50:00 UTC,view,10900305,2053013555069845885"
    refused = Store(str(tmp_path)).read(spark, REJECTED_EVENTS, "2019-10-01", "").collect()
    assert [tuple(row) for row in refused] == [
        ("malformed_row", f"{cut_off},appliances.kitchen.mixer,elenberg,25.71,52040330")
    ]


def test_real_deskdrop(spark: SparkSession, tmp_path: Path) -> None:
    log = real("deskdrop", "users_interactions.csv.gz")
    done, _ = sessionized(spark, tmp_path, "deskdrop", log, "2016-03-14", "2017-02-28")
    assert (done.rows_read, done.rejected) == (72_312, {})


def test_real_amazon_beauty_with_categories(spark: SparkSession, tmp_path: Path) -> None:
    log = real("amazon-beauty", "reviews.csv.gz")
    attributes = real("amazon-beauty", "Beauty_item2attributes.json")
    done, counters = sessionized(spark, tmp_path, "amazon-reviews", log, "2002-06-12", "2014-07-23", [attributes])
    assert (done.rows_read, done.rejected, done.duplicates) == (198_502, {}, 0)
    known = {item for item, kinds in json.loads(Path(attributes).read_text()).items() if kinds}
    log_rows = spark.read.csv(log, header=True)
    assert counters["rows_with_category"] == sum(
        row["item_id"] in known for row in log_rows.select("item_id").collect()
    )
