"""The masks of a step are those that each structure gives by itself, drafts included."""

# ruff: noqa: S311 - the dice need not be good

import random
import threading

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from inference_pio.core._masks import MaskJob, MaskWorker
from inference_pio.core._structure import StructureCompiler
from inference_pio.interfaces import EngineError, StructuredOutputs
from inference_pio.processing import tokenizer_from_folder

LETTERS = "abcdefghij"
END = len(LETTERS)
PAIR = END + 1  # spells "ab"
VOCAB = 77  # not a multiple of 32


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    vocab = {letter: token_id for token_id, letter in enumerate(LETTERS)} | {"<end>": END, "ab": PAIR}
    backend = Backend(models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(folder / "tokenizer.json"))
    return StructureCompiler(tokenizer_from_folder(folder), VOCAB, [END])


@pytest.fixture(params=[None, 1, 3])
def worker(request):
    worker = MaskWorker(VOCAB, threads=request.param)
    yield worker
    worker.close()


def spell(text):
    return tuple(LETTERS.index(letter) for letter in text)


def allowed(row):
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def mask_of(structure):
    """By itself: what a step without drafts would use."""
    mask = np.zeros(structure.vocabulary.num_words, dtype=np.int32)
    structure.fill_mask(mask)
    return allowed(mask)


def choice(compiler, *texts):
    return compiler.compile(StructuredOutputs(choice=texts))


def test_rows_of_no_job_allow_everything(compiler, worker):
    """Words of a row are int32, as many as the vocabulary needs."""
    masks = worker.start([MaskJob(choice(compiler, "a"), [2])]).result(4)
    assert masks.shape == (4, 3)
    assert masks.dtype == np.int32
    assert (masks[[0, 1, 3]] == -1).all()
    assert allowed(masks[2]) == set(spell("a"))


def test_no_jobs_cost_nothing_and_give_none():
    """Neither a thread nor an array."""
    worker = MaskWorker(VOCAB)
    before = threading.active_count()
    assert worker.start([]).result(3) is None
    assert threading.active_count() == before
    worker.close()


def test_drafts_see_the_mask_after_each_token(compiler, worker):
    """Rows may be anywhere and in any order; afterwards the structure stands where it stood."""
    structure = choice(compiler, "abc", "abde")
    masks = worker.start([MaskJob(structure, [4, 0, 3], spell("ab"))]).result(5)
    assert allowed(masks[4]) == {PAIR}  # nothing else can follow, and this is how it is spelled
    assert allowed(masks[0]) == set(spell("b"))
    assert allowed(masks[3]) == set(spell("cd"))
    assert (masks[[1, 2]] == -1).all()
    assert mask_of(structure) == {PAIR}


def test_a_draft_that_is_not_allowed_ends_it(compiler, worker):
    """Rows up to it are right, later ones are never used and allow everything."""
    structure = choice(compiler, "abc")
    for wrong in (*spell("e"), VOCAB - 1, END):
        masks = worker.start([MaskJob(structure, range(4), (*spell("a"), wrong, *spell("c")))]).result(4)
        assert allowed(masks[1]) == set(spell("b"))
        assert (masks[2:] == -1).all()
    assert structure.error is None


def test_after_an_end_token_only_end_tokens_follow(compiler, worker):
    """In a draft as well as in a text that has ended."""
    structure = choice(compiler, "a", "ab")
    draft = (*spell("a"), END, *spell("c"))
    masks = worker.start([MaskJob(structure, range(4), draft)]).result(4)
    assert allowed(masks[1]) == {*spell("b"), END}
    assert allowed(masks[2]) == allowed(masks[3]) == {END}
    structure.advance(PAIR)
    structure.advance(END)
    masks = worker.start([MaskJob(structure, [0, 1], (END,))]).result(2)
    assert allowed(masks[0]) == allowed(masks[1]) == {END}


def test_fewer_rows_than_draft_tokens(compiler, worker):
    """The rest of the draft is not looked at; no rows at all is no work."""
    structure = choice(compiler, "abc")
    masks = worker.start([MaskJob(structure, [0], spell("abc")), MaskJob(choice(compiler, "b"), [])]).result(1)
    assert allowed(masks[0]) == mask_of(structure)


def test_more_rows_than_tokens_are_refused(compiler):
    """There is no such mask."""
    with pytest.raises(ValueError, match="2 rows, but only 0 tokens ahead"):
        MaskJob(choice(compiler, "a"), [0, 1])


def test_a_structure_that_cannot_go_on_fails_alone(compiler, worker):
    """Its rows allow nothing and it says why; other jobs of the step are as they should be."""
    broken = compiler.compile(StructuredOutputs(grammar='start: "a" b | "c"\nb: b "d"'))
    broken.advance(spell("a")[0])
    jobs = [MaskJob(broken, [0, 1], spell("d")), MaskJob(choice(compiler, "b"), [2])]
    for _ in range(2):  # the second time it is known to be broken
        masks = worker.start(jobs).result(3)
        assert (masks[:2] == 0).all()
        assert allowed(masks[2]) == set(spell("b"))
    assert broken.error == "no token can follow"


def test_a_whole_step_equals_one_by_one(compiler, worker):
    """Many sequences at random places with random drafts, good and bad."""
    rng = random.Random(5)
    texts = ["".join(rng.choice("abcd") for _ in range(rng.randrange(1, 6))) for _ in range(12)]
    for _ in range(20):
        jobs, wanted, row = [], {}, 0
        for _ in range(rng.randrange(1, 9)):
            structure = choice(compiler, *texts)
            text = rng.choice(texts)
            taken = rng.randrange(len(text) + 1)
            for token_id in spell(text[:taken]):
                structure.advance(token_id)
            draft = (*spell(text[taken:]), END) if rng.random() < 0.6 else spell("".join(rng.choices("abcd", k=3)))
            replay = structure.fork()
            for offset in range(len(draft) + 1):
                wanted[row + offset] = mask_of(replay)
                if offset == len(draft):
                    break
                try:
                    replay.advance(draft[offset])
                except EngineError:
                    break
            jobs.append(MaskJob(structure, range(row, row + len(draft) + 1), draft))
            row += len(draft) + 1
        masks = worker.start(jobs).result(row)
        for index, mask in enumerate(masks):
            if index in wanted:
                assert allowed(mask) == wanted[index]
            else:
                assert (mask == -1).all()


def test_closing_twice_is_harmless(compiler):
    """The thread is gone after the first time."""
    worker = MaskWorker(VOCAB)
    worker.start([MaskJob(choice(compiler, "a"), [0])]).result(1)
    assert any(thread.name.startswith("pio-masks") for thread in threading.enumerate())
    worker.close()
    worker.close()
    assert not any(thread.name.startswith("pio-masks") for thread in threading.enumerate())


def test_threads_must_be_at_least_one():
    """Zero is a mistake, not a default."""
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MaskWorker(VOCAB, threads=0)
