"""The mixture rules, for any documents, scores and configuration."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synrank_jax.config import DataConfig
from synrank_jax.data.mixture import Found, RefusedError, assemble

DOCUMENTS = 8
NOTHING = frozenset()


def rules(*sources, **values):
    given_ = tuple({"path": str(index), **source} for index, source in enumerate(sources))
    defaults = {"sources": given_, "prepared": "unused", "list_size": 100, "duplicates": "max"}
    return DataConfig(**(defaults | values))


def graded(assembled):
    return None if assembled is None else [(m.document, m.grade) for m in assembled.members]


def one(documents, scores, source=None, draw=0, query="q", **values):
    return graded(
        assemble(query, [Found(documents, scores)], NOTHING, rules(source or {}, **values), draw)
    )


def test_min_score_is_inclusive_and_max_score_exclusive():
    source = {"min_score": 0.7, "max_score": 3, "grade": 1}
    assert one([0, 1, 2, 3], [0.7, 3, 2.9, 0.69], source) == [(0, 1), (2, 1)]


@pytest.mark.parametrize(
    ("grade", "scores", "expected"),
    [
        (None, [0, 3, 1], [0, 3, 1]),
        (2, [0.4, -7, 1e9], [2, 2, 2]),
        ({1: 3, 0.5: 1, 0: 0}, [1, 0.5, 0], [3, 1, 0]),
        ("floor", [0.9, 2.0, 2.1], [0, 2, 2]),
        ("ceil", [0.1, 2.0, 2.1], [1, 2, 3]),
    ],
)
def test_grades_of_scores(grade, scores, expected):
    made = one([0, 1, 2], scores, {"grade": grade})
    assert sorted(made) == list(enumerate(expected))
    assert [g for _, g in made] == sorted(expected, reverse=True)


@pytest.mark.parametrize(
    ("grade", "score", "message"),
    [
        (None, 1.5, "score 1.5 is no grade, which must be whole"),
        (None, 7, "grade 7 is not one of data.grades [0, 1, 2, 3]"),
        ({1: 3}, 2, "score 2 is not in the table data.sources.0.grade {'1': 3}"),
        ("ceil", 3.2, "grade 4 is not one of"),
        (5, 1, "grade 5 is not one of"),
    ],
)
def test_a_score_without_a_grade_is_refused_with_its_document(grade, score, message):
    with pytest.raises(RefusedError) as error:
        one([4, 6], [1 if grade != 5 else score, score], {"grade": grade})
    assert message in str(error.value)
    assert (error.value.source, error.value.document) == (0, 4 if grade == 5 else 6)


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        ({"top_k": 2}, {3, 1}),
        ({"bottom_k": 2}, {4, 0}),
        ({"first_k": 2}, {0, 1}),
        ({"first_k": 9}, {0, 1, 2, 3, 4}),
    ],
)
def test_take_goes_by_the_scores_as_written_and_equal_scores_by_file_order(take, expected):
    made = one([0, 1, 2, 3, 4], [1, 2, 2, 3, 0.5], {"grade": 1, "take": take})
    assert {document for document, _ in made} == expected


def mixed(duplicates, *founds, sources=({}, {}, {}), **values):
    data = rules(*sources[: len(founds)], duplicates=duplicates, **values)
    return assemble("q", [Found(*found) for found in founds], NOTHING, data, 0)


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [("max", [(5, 3), (7, 1)]), ("first", [(7, 1), (5, 0)]), ("last", [(5, 1), (7, 1)])],
)
def test_a_document_with_several_grades(duplicates, expected):
    made = mixed(duplicates, ([5, 7], [0, 1]), ([5], [3]), ([5], [1]))
    assert sorted(graded(made)) == sorted(expected)
    assert made.conflicts == 1


def test_two_grades_are_refused_by_default_but_the_same_grade_twice_is_not():
    data = DataConfig(sources=({"path": "a"}, {"path": "b"}), prepared="unused")
    agreed = assemble("q", [Found([1], [2]), Found([1], [2])], NOTHING, data, 0)
    assert graded(agreed) == [(1, 2)]
    with pytest.raises(RefusedError, match=r"2 in data\.sources\.0 and 3 in data\.sources\.1"):
        assemble("q", [Found([1], [2]), Found([1], [3])], NOTHING, data, 0)


def test_a_document_belongs_to_one_source_before_any_takes_its_share():
    # 1 is a positive of the first source, so that the second gives 2 and 3, not 1 and 2 ...
    sources = ({"grade": 3}, {"grade": 1, "take": {"first_k": 2}})
    made = mixed("max", ([1], [1]), ([1, 2, 3], [9, 8, 7]), sources=sources)
    assert graded(made) == [(1, 3), (2, 1), (3, 1)]
    # ... and where the first does not take it, it is in no list, but known to be no negative.
    sources = ({"grade": 3, "take": {"first_k": 1}}, {"grade": 1, "take": {"first_k": 2}})
    made = mixed("max", ([0, 1], [1, 1]), ([1, 2, 3, 4], [9, 8, 7, 6]), sources=sources)
    assert graded(made) == [(0, 3), (2, 1), (3, 1)]
    assert made.others == {1, 4}


def test_union_and_intersection_of_queries():
    founds = (([1], [3]), ([], []))
    assert graded(mixed("max", *founds)) == [(1, 3)]
    assert mixed("max", *founds, missing_queries="intersection") is None
    # A source that is left with nothing lacks the query too.
    sources = ({}, {"min_score": 2})
    lost = (([1], [3]), ([2], [1]))
    assert mixed("max", *lost, sources=sources, missing_queries="intersection") is None


def test_a_list_that_is_too_long_is_refused():
    with pytest.raises(RefusedError, match=r"'q' has 3 passages, data\.list_size is 2"):
        one([1, 2, 3], [1, 1, 1], list_size=2)


def test_random_draws_depend_on_seed_draw_source_and_query_alone():
    documents, scores = list(range(50)), [1.0] * 50
    take = {"take": {"random_k": 5}}

    def drawn(query="q", draw=0, seed=0):
        return one(documents, scores, take, draw, query, seed=seed, draws=3)

    assert drawn() == drawn()
    assert len({str(d) for d in (drawn(), drawn("r"), drawn(draw=1), drawn(seed=1))}) == 4
    data = rules(take, take)
    both = assemble(
        "q", [Found(documents, scores), Found(range(50, 100), scores)], NOTHING, data, 0
    )
    first = {m.document for m in both.members if m.source == 0}
    second = {m.document - 50 for m in both.members if m.source == 1}
    assert first == {document for document, _ in drawn()}
    assert first != second


def test_every_document_is_drawn_equally_often():
    # 4,000 draws of 2 of 5: each count is binomial(4000, 2/5), sigma 31; 5 sigma.
    counts = [0] * 5
    for query in range(4000):
        for document, _ in one([0, 1, 2, 3, 4], [1] * 5, {"take": {"random_k": 2}}, 0, str(query)):
            counts[document] += 1
    assert max(abs(count - 1600) for count in counts) < 5 * 31


pairs = st.lists(st.tuples(st.integers(0, DOCUMENTS), st.integers(0, 3)), max_size=12)
takes = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(["random_k", "top_k", "bottom_k", "first_k"]), st.integers(1, 4)).map(
        lambda pair: {pair[0]: pair[1]}
    ),
)
source_rules = st.fixed_dictionaries(
    {
        "take": takes,
        "min_score": st.sampled_from([None, 1]),
        "max_score": st.sampled_from([None, 3]),
        "grade": st.sampled_from([None, 2, {0: 1, 1: 1, 2: 3, 3: 0}, "floor"]),
    }
)
mixtures = st.lists(st.tuples(source_rules, pairs), min_size=1, max_size=3)
barred_sets = st.frozensets(st.integers(0, DOCUMENTS), max_size=3)


def found_of(mixture):
    return [Found([d for d, _ in pairs], [float(s) for _, s in pairs]) for _, pairs in mixture]


def assembled(mixture, barred=NOTHING, draw=0, **values):
    data = rules(*(source for source, _ in mixture), **values)
    return assemble("q", found_of(mixture), barred, data, draw)


def grade_of(source, score):
    grade = source["grade"]
    return grade[score] if isinstance(grade, dict) else 2 if grade == 2 else score


def kept(source, score):
    low, high = source["min_score"], source["max_score"]
    return (low is None or low <= score) and (high is None or score < high)


@given(mixtures, barred_sets, st.sampled_from(["max", "first", "last"]), st.integers(0, 2))
def test_any_list_obeys_the_rules(mixture, barred, duplicates, draw):
    made = assembled(mixture, barred, draw, duplicates=duplicates)
    judged = {document for _, pairs in mixture for document, _ in pairs}
    possible = {
        (document, grade_of(source, score), index)
        for index, (source, pairs) in enumerate(mixture)
        for document, score in pairs
        if kept(source, score) and document not in barred
    }
    if made is None:
        assert not possible
        return
    documents = [member.document for member in made.members]
    assert documents
    assert len(documents) == len(set(documents))
    assert made.others == (judged | barred) - set(documents)
    grades = [member.grade for member in made.members]
    assert grades == sorted(grades, reverse=True)
    for member in made.members:
        assert (member.document, member.grade, member.source) in possible
        given_ = [grade for document, grade, _ in possible if document == member.document]
        if duplicates == "max":
            assert member.grade == max(given_)
    for index, (source, _) in enumerate(mixture):
        share = sum(member.source == index for member in made.members)
        if source["take"]:
            assert share <= next(iter(source["take"].values()))


@given(mixtures, st.integers(0, 2))
def test_only_random_shares_differ_between_draws(mixture, draw):
    first, other = assembled(mixture), assembled(mixture, draw=draw)
    assert (first is None) == (other is None)
    if first and other:
        assert len(first.members) == len(other.members)
        assert first.conflicts == other.conflicts
        if not any(source["take"] and "random_k" in source["take"] for source, _ in mixture):
            assert first == other


@given(mixtures)
def test_without_take_the_highest_grade_wins_in_any_order_of_sources(mixture):
    bare = [({**source, "take": None}, pairs) for source, pairs in mixture]
    lists = {
        str(sorted(graded(made))) if (made := assembled(list(order))) else None
        for order in itertools.permutations(bare)
    }
    assert len(lists) == 1


@given(mixtures)
def test_an_intersection_is_the_union_or_nothing(mixture):
    union, both = assembled(mixture), assembled(mixture, missing_queries="intersection")
    assert both is None or both == union
    if both is not None:
        sources = {member.source for member in both.members}
        assert sources == set(range(len(mixture)))


@given(mixtures)
def test_a_conflict_is_refused_exactly_where_it_would_be_counted(mixture):
    made = assembled(mixture)
    if made is None or made.conflicts == 0:
        assert assembled(mixture, duplicates="error") == made
    else:
        with pytest.raises(RefusedError, match="two grades for one document"):
            assembled(mixture, duplicates="error")
