"""The queue: strangers share batches and cannot tell, clients leave, are interrupted, wait, are turned away."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

import sdjax
from tests.web.serving import difference, in_base64, opened

LONG = {"prompt": "a red apple", "steps": 1000, "seed": 1}


def wait_for(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def drawing(served, **more):
    """A long request that is being drawn. Yields the future of its answer; interrupts it at the end."""
    asked = LONG | {"force_task_id": "long"} | more
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.ask, "/sdapi/v1/txt2img", asked)
        wait_for(lambda: (job := served.service.scheduler.find(asked["force_task_id"])) and job.step > 0)
        try:
            yield answer
        finally:
            served.post("/sdapi/v1/interrupt", {})


def gone(served, path, body):
    """Sends a request; returns the function that closes its connection."""
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"))
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.close


def test_strangers_share_a_batch(served, picture, mask):
    """Requests of one shape that wait together become one batch; each is as it would be alone."""
    rng = np.random.default_rng(0)
    words = ("a red apple", "a cat", "blue", "a (dog:1.3)", "zorp")
    asked = [
        {
            "prompt": words[n % 5],
            "negative_prompt": words[(n * 3) % 5] if n % 2 else "",
            "seed": int(rng.integers(2**32 - 2)),
            "cfg_scale": [7, 1, 3.5][n % 3],
            "subseed": n,
            "subseed_strength": 0.3,
            "steps": 3,
        }
        for n in range(7)
    ]
    before = dict(served.service.metrics.batches)
    with drawing(served) as long, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(served.post, "/sdapi/v1/txt2img", body) for body in asked]
        wait_for(lambda: served.get("/queue/status")["queue_size"] == len(asked))
        served.post("/sdapi/v1/interrupt", {})
        images = [opened(answer.result()["images"][0]) for answer in answers]
        long.result()
    sizes = {size: times - before.get(size, 0) for size, times in served.service.metrics.batches.items()}
    assert {size for size, times in sizes.items() if times} == {1, 7}
    for image, body in zip(images, asked, strict=True):
        own = {"seed": body["seed"], "guidance_scale": body["cfg_scale"], "negative_prompt": body["negative_prompt"]}
        own |= {"variation_seed": body["subseed"], "variation_strength": 0.3}
        (alone,) = sdjax.txt2img(served.sd, body["prompt"], steps=3, sampler="euler", **own)
        assert difference(image, alone) <= 1


def test_pictures_share_a_batch(served, picture, mask):
    """So do those that start from pictures, with masks, each from its own."""
    others = [picture.rotate(90 * n) for n in range(2)]
    holes = [mask.rotate(90 * n) for n in range(2)]
    how = {"steps": 3, "denoising_strength": 0.7, "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    before = sum(served.service.metrics.batches.values())
    with drawing(served), ThreadPoolExecutor(2) as pool:
        asked = [
            {"init_images": [in_base64(i)], "mask": in_base64(m)} | how for i, m in zip(others, holes, strict=True)
        ]
        answers = [pool.submit(served.post, "/sdapi/v1/img2img", body | {"seed": 3}) for body in asked]
        wait_for(lambda: served.get("/queue/status")["queue_size"] == len(asked))
        served.post("/sdapi/v1/interrupt", {})
        images = [opened(answer.result()["images"][0]) for answer in answers]
    assert sum(served.service.metrics.batches.values()) == before + 2
    for image, own, hole in zip(images, others, holes, strict=True):
        (alone,) = sdjax.inpaint(served.sd, "", own, hole, 0.7, seed=3, steps=3, sampler="euler", guidance_scale=7)
        assert difference(image, alone) <= 1


def test_a_full_queue_answers_at_once(served):
    with drawing(served), ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(served.ask, "/sdapi/v1/txt2img", {"steps": 1, "seed": n}) for n in range(20)]
        wait_for(lambda: served.get("/queue/status")["queue_size"] == 20)
        began = time.monotonic()
        status, body, headers = served.ask("/sdapi/v1/txt2img", {"steps": 1})
        assert (status, body["detail"][:17]) == (503, "the queue is full") and int(headers["Retry-After"]) >= 1
        status, body, headers = served.ask("/v1/images/generations", {"prompt": "", "steps": 1})
        assert (status, body["error"]["type"]) == (429, "rate_limit_error") and "Retry-After" in headers
        assert time.monotonic() - began < 2
        tasks = served.get("/internal/pending-tasks")
        assert tasks["size"] == 20
        assert served.post("/internal/progress", {"id_task": tasks["tasks"][3]})["textinfo"] == "In queue: 4/20"
        served.post("/sdapi/v1/interrupt", {})
        assert all(answer.result()[0] == 200 for answer in waiting)


def test_a_client_that_leaves_frees_its_place(served):
    """At once when it waits, at the next step when it is drawn."""
    scheduler = served.service.scheduler
    with drawing(served):
        leave = gone(served, "/sdapi/v1/txt2img", LONG | {"force_task_id": "waits"})
        wait_for(lambda: scheduler.find("waits"))
        leave()
        wait_for(lambda: not scheduler.find("waits"), 2)
        assert scheduler.find("long").active
    leave = gone(served, "/v1/images/generations", {"prompt": "", "steps": 1000, "n": 10})
    wait_for(lambda: any(job.step for job in scheduler.running))
    leave()
    wait_for(scheduler.idle, 5)
    assert served.get("/sdapi/v1/progress")["state"]["job_count"] == 0


def test_interrupt_ends_what_is_drawn(served):
    """With the picture of the last step; the web UI's alone; one alone by its id; what waits stays."""
    with drawing(served) as long, ThreadPoolExecutor(2) as pool:
        other = pool.submit(served.ask, "/sdapi/v1/txt2img", {"steps": 2, "seed": 4})
        wait_for(lambda: served.get("/queue/status")["queue_size"] == 1)
        served.post("/sdapi/v1/interrupt", {"id_task": "another"})
        time.sleep(0.1)
        assert not long.done()
        served.post("/sdapi/v1/interrupt", {"id_task": "long"})
        status, answer, _ = long.result(10)
        assert status == 200 and opened(answer["images"][0]).size == (16, 16)
        assert other.result(30)[0] == 200
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.ask, "/v1/images/generations", {"prompt": "", "steps": 1000})
        wait_for(lambda: any(job.step for job in served.service.scheduler.running))
        served.post("/sdapi/v1/interrupt", {})
        status, body, _ = answer.result()
        assert status == 200
        assert "Steps: 1000" in opened(body["data"][0]["b64_json"]).info["parameters"]


def test_skip_goes_on_with_the_rest(served, monkeypatch):
    monkeypatch.setattr("sdjax.web.draw.MOST", 1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.ask, "/sdapi/v1/txt2img", LONG | {"n_iter": 3, "force_task_id": "three"})
        for number in range(3):
            wait_for(
                lambda n=number: (job := served.service.scheduler.find("three")) and job.place[0] == n and job.step
            )
            served.post("/sdapi/v1/skip", {})
        assert len(answer.result()[1]["images"]) == 3


def test_interrupt_between_two_batches(served, monkeypatch):
    """A request that is drawn in part and waits for its turn is answered at once with the pictures that there are."""
    monkeypatch.setattr("sdjax.web.draw.MOST", 1)
    find = served.service.scheduler.find
    with ThreadPoolExecutor(2) as pool:
        asked = {"steps": 500, "n_iter": 3, "force_task_id": "three"}
        three = pool.submit(served.ask, "/sdapi/v1/txt2img", asked)
        wait_for(lambda: find("three"))
        other = pool.submit(served.ask, "/sdapi/v1/txt2img", LONG | {"force_task_id": "other"})
        wait_for(lambda: (job := find("other")) and job.step)
        seen = served.post("/internal/progress", {"id_task": "three"})
        there = round(3 * seen["progress"])
        assert seen["active"] and there in (1, 2) and abs(seen["progress"] - there / 3) < 1e-6
        served.post("/sdapi/v1/interrupt", {"id_task": "three"})
        assert len(three.result(2)[1]["images"]) == there and not other.done()
        served.post("/sdapi/v1/interrupt", {})
        assert other.result(5)[0] == 200


def test_progress_of_one_task(served):
    with drawing(served):
        found = served.post("/internal/progress", {"id_task": "long"})
        assert found["active"] and not found["queued"] and 0 < found["progress"] < 1 and found["eta"] > 0
        assert found["live_preview"].startswith("data:image/png;base64,")
        assert opened(found["live_preview"].partition(",")[2]).size == (16, 16)
        status, body, _ = served.ask("/sdapi/v1/progress?id_task=long&skip_current_image=true")
        assert status == 200 and body["current_image"] is None and body["state"]["job"] == "long"
        previews = served.service.scheduler.find("long").previews
        time.sleep(0.2)
        assert served.service.scheduler.find("long").previews == previews  # none that nobody asked for
    wait_for(lambda: served.post("/internal/progress", {"id_task": "long"})["completed"])


def test_one_that_overflows_spares_its_neighbours(served, monkeypatch):
    """A picture of NaN is refused, and what was drawn with it is not."""
    from sdjax.web import draw as module

    original = module.draw_request

    def broken(*arguments, **options):
        found = np.array(original(*arguments, **options))
        found[0] = np.nan if len(found) > 1 else found[0]
        return found

    monkeypatch.setattr(module, "draw_request", broken)
    with drawing(served), ThreadPoolExecutor(2) as pool:
        answers = []
        for n in range(2):
            answers.append(pool.submit(served.ask, "/sdapi/v1/txt2img", {"steps": 2, "seed": n}))
            wait_for(lambda n=n: served.get("/queue/status")["queue_size"] == n + 1)
        served.post("/sdapi/v1/interrupt", {})
        assert [answer.result()[0] for answer in answers] == [422, 200]


def test_a_mistake_of_ours_is_500_and_the_server_goes_on(served, monkeypatch):
    from sdjax.web import draw as module

    def broken(*arguments, **options):
        raise RuntimeError("/secret/path")

    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_request", broken)
        status, body, _ = served.ask("/sdapi/v1/txt2img", {"steps": 2})
        assert status == 500 and "secret" not in json.dumps(body)
        status, body, _ = served.ask("/v1/images/generations", {"prompt": "", "steps": 2})
        assert status == 500 and body["error"]["type"] == "server_error"
    served.post("/sdapi/v1/txt2img", {"steps": 2})
    assert threading.active_count() < 100
