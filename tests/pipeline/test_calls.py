"""What callers of the pipeline may ask for, and what it says when that cannot be."""

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMScheduler
from diffusers.callbacks import PipelineCallback
from PIL import Image

from data_loaders.captions import TASK_PHRASES
from sat_udpdiff.pipeline import UDPDiffPipeline, UDPDiffTransformer3DModel

PROMPT = "a red disc moves left"
OTHER = "a blue ring moves up"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def latents_of(pipeline, prompt=PROMPT, task="depth", **keywords):
    keywords = {"num_inference_steps": 2, "generator": seeded()} | keywords
    output = pipeline(prompt, task, output_type="latent", **keywords)
    return torch.cat([output.frames, output.dense], dim=2)


class Spy:
    """Records what the transformer is given."""

    def __init__(self, pipeline):
        self.calls = []
        pipeline.transformer.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.calls.append(kwargs)


class TestOutputs:
    @pytest.mark.parametrize("task", ["segmentation", "depth"])
    def test_arrays(self, pipeline, task):
        out = pipeline(PROMPT, task, num_inference_steps=2, generator=seeded(), output_type="np")
        for frames in (out.frames, out.dense):
            assert frames.shape == (1, 9, 32, 48, 3)
            assert frames.dtype == np.float32
            assert frames.min() >= 0
            assert frames.max() <= 1
        said, other = out.entity_ids, out.depth
        if task == "depth":
            said, other = other, said
        assert said.shape == (1, 9, 32, 48)
        assert said.dtype == (np.float32 if task == "depth" else np.int32)
        assert other is None
        assert out.task == task

    def test_tensors_and_tuple(self, pipeline):
        frames, dense, ids, depth = pipeline(
            PROMPT,
            "depth",
            num_inference_steps=2,
            generator=seeded(),
            output_type="pt",
            return_dict=False,
        )
        assert frames.shape == dense.shape == (1, 9, 3, 32, 48)
        assert ids is None
        assert depth.shape == (1, 9, 32, 48)

    def test_another_size_and_an_even_number_of_latent_frames(self, pipeline):
        out = pipeline(
            PROMPT,
            "depth",
            num_frames=13,
            height=24,
            width=40,
            num_inference_steps=1,
            generator=seeded(),
        )
        assert len(out.frames[0]) == len(out.dense[0]) == 13
        assert isinstance(out.frames[0][0], Image.Image)
        assert out.frames[0][0].size == (40, 24)
        assert out.depth.shape == (1, 13, 24, 40)

    def test_latents_stay_float32_in_a_bf16_pipeline(self, exported):
        pipeline = exported.open().to(torch.bfloat16)
        seen = []
        pipeline(
            PROMPT,
            "depth",
            num_inference_steps=2,
            generator=seeded(),
            callback_on_step_end=lambda _, i, t, tensors: seen.append(tensors["latents"]) or {},
        )
        assert pipeline.transformer.dtype == torch.bfloat16
        for latents in seen:
            assert latents.dtype == torch.float32
            # Not numbers of bf16 in a wider type.
            assert not torch.equal(latents, latents.bfloat16().float())


class TestBatches:
    def test_prompts_and_videos_per_prompt_are_in_order(self, pipeline):
        noise = torch.randn(4, 3, 32, 8, 12, generator=seeded(3))
        pipeline.scheduler = CogVideoXDDIMScheduler.from_config(pipeline.scheduler.config)
        together = latents_of(pipeline, [PROMPT, OTHER], num_videos_per_prompt=2, latents=noise)
        alone = [
            latents_of(pipeline, prompt, latents=row[None])
            for prompt, row in zip([PROMPT, PROMPT, OTHER, OTHER], noise, strict=True)
        ]
        assert (together - torch.cat(alone)).abs().max() < 1e-4
        assert (together[1] - together[2]).abs().max() > 0.1

    def test_a_list_of_generators_belongs_to_the_videos(self, pipeline):
        pair = latents_of(pipeline, [PROMPT, PROMPT], generator=[seeded(1), seeded(2)])
        alone = latents_of(pipeline, generator=[seeded(2)])
        assert (pair[1:] - alone).abs().max() < 1e-4
        assert (pair[0] - pair[1]).abs().max() > 0.1

    def test_the_same_generator_gives_the_same_sample(self, pipeline):
        assert torch.equal(latents_of(pipeline), latents_of(pipeline))
        assert not torch.equal(latents_of(pipeline), latents_of(pipeline, generator=seeded(1)))


class TestText:
    def test_the_branch_without_text_is_zeros_and_knows_the_task(self, pipeline):
        spy = Spy(pipeline)
        latents_of(pipeline, [PROMPT, OTHER], task="depth")
        text, task = spy.calls[0]["encoder_hidden_states"], spy.calls[0]["task"]
        assert text.shape == (4, 48, 128)
        assert not text[:2].any()
        assert (text[2] - text[3]).abs().max() > 0.1
        assert task.tolist() == [1, 1, 1, 1]

    @pytest.mark.parametrize("negative", ["a still video", ["a still video"]])
    def test_a_negative_prompt_takes_the_place_of_zeros(self, pipeline, negative):
        spy = Spy(pipeline)
        latents_of(pipeline, negative_prompt=negative)
        expected, _ = pipeline.encode_prompt("a still video")
        assert torch.equal(spy.calls[0]["encoder_hidden_states"][:1], expected)

    def test_the_empty_caption_if_the_network_was_trained_so(self, exported):
        pipeline = UDPDiffPipeline.from_pretrained(exported.folder, unconditional="empty")
        pipeline.set_progress_bar_config(disable=True)
        spy = Spy(pipeline)
        latents_of(pipeline, [PROMPT, OTHER])
        text = spy.calls[0]["encoder_hidden_states"]
        assert text[0].abs().max() > 0.1
        assert torch.equal(text[0], text[1])

    def test_embeddings_serve_in_place_of_the_text_encoder(self, exported, pipeline):
        embeds, negative = pipeline.encode_prompt([PROMPT, OTHER])
        without = UDPDiffPipeline.from_pretrained(
            exported.folder, text_encoder=None, tokenizer=None
        )
        without.set_progress_bar_config(disable=True)
        out = latents_of(without, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
        assert torch.equal(out, latents_of(pipeline, [PROMPT, OTHER]))
        with pytest.raises(ValueError, match="text_encoder: this pipeline has none; give prompt_e"):
            latents_of(without)

    def test_a_task_told_in_words(self, pipeline):
        components = pipeline.components
        config = dict(pipeline.transformer.config) | {"task_signal": "prompt"}
        components["transformer"] = UDPDiffTransformer3DModel.from_config(config)
        told = UDPDiffPipeline(**components, guidance="constant", guidance_scale=2.5)
        told.set_progress_bar_config(disable=True)
        spy = Spy(told)
        latents_of(told, negative_prompt=OTHER)
        words = TASK_PHRASES["depth"]
        expected, _ = pipeline.encode_prompt([words + OTHER, words + PROMPT])
        assert torch.equal(spy.calls[0]["encoder_hidden_states"], expected)
        assert torch.equal(told.encode_prompt(PROMPT, task="depth")[0], expected[1:])

    def test_a_prompt_that_is_cut_is_named(self, pipeline, caplog):
        latents_of(pipeline, "a red disc " * 20)
        assert "has 61 tokens; those after 48 are cut off" in caplog.text


class TestGuidance:
    def test_no_second_branch_where_there_is_nothing_to_guide(self, pipeline):
        spy = Spy(pipeline)
        alone = latents_of(pipeline, guidance_scale=1.0)
        assert [len(call["hidden_states"]) for call in spy.calls] == [1, 1]
        assert (alone - latents_of(pipeline, guidance_scale=1.0001)).abs().max() < 1e-2

    def test_diffusers_word_for_dynamic_guidance(self, pipeline):
        dynamic = latents_of(pipeline, use_dynamic_cfg=True)
        assert torch.equal(dynamic, latents_of(pipeline, guidance="dynamic_released"))
        constant = latents_of(pipeline, use_dynamic_cfg=False)
        assert torch.equal(constant, latents_of(pipeline, guidance="constant"))
        assert (dynamic - constant).abs().max() > 1e-3

    def test_another_scheduler_of_diffusers_runs(self, pipeline):
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        assert latents_of(pipeline).isfinite().all()


class TestCallbacks:
    def test_each_step_is_told_and_may_change_the_latents(self, pipeline):
        told = []

        def double(pipe, step, timestep, tensors):
            told.append((pipe is pipeline, step, int(timestep), sorted(tensors)))
            return {"latents": 2 * tensors["latents"]}

        doubled = latents_of(pipeline, num_inference_steps=1, callback_on_step_end=double)
        assert told == [(True, 0, 999, ["latents"])]
        assert torch.equal(doubled, 2 * latents_of(pipeline, num_inference_steps=1))

    def test_interrupt_leaves_the_rest_out(self, pipeline):
        spy, steps = Spy(pipeline), []

        def stop(pipe, step, timestep, tensors):
            steps.append(step)
            pipe._interrupt = step == 1
            return tensors

        latents_of(pipeline, num_inference_steps=4, callback_on_step_end=stop)
        assert steps == [0, 1]
        assert len(spy.calls) == 2
        latents_of(pipeline)
        assert len(spy.calls) == 4

    def test_embeddings_may_be_changed(self, pipeline):
        spy, (other, _) = Spy(pipeline), pipeline.encode_prompt(OTHER)
        latents_of(
            pipeline,
            callback_on_step_end=lambda *_: {"prompt_embeds": other},
            callback_on_step_end_tensor_inputs=["prompt_embeds", "negative_prompt_embeds"],
        )
        first, second = (call["encoder_hidden_states"][1:] for call in spy.calls)
        assert not torch.equal(first, other)
        assert torch.equal(second, other)

    def test_a_callback_object_of_diffusers_may_end_guidance(self, pipeline):
        class Cutoff(PipelineCallback):
            tensor_inputs = ("prompt_embeds",)

            def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
                pipeline._guidance_scale = 0.0
                return {"prompt_embeds": callback_kwargs["prompt_embeds"][-1:]}

        spy = Spy(pipeline)
        latents_of(pipeline, num_inference_steps=4, callback_on_step_end=Cutoff())
        assert [len(call["hidden_states"]) for call in spy.calls] == [2, 1, 1, 1]


class TestMemory:
    def test_slicing_changes_nothing_and_tiling_little(self, pipeline):
        keywords = {"num_inference_steps": 1, "height": 64, "width": 96, "output_type": "np"}

        def sample():
            return pipeline([PROMPT, OTHER], "depth", generator=seeded(), **keywords).frames

        whole = sample()
        pipeline.enable_vae_slicing()
        assert np.abs(sample() - whole).max() < 1e-5
        pipeline.disable_vae_slicing()
        pipeline.enable_vae_tiling()
        tiled = sample()
        assert tiled.shape == whole.shape
        assert 0 < np.abs(tiled - whole).mean() < 0.05
        pipeline.disable_vae_tiling()
        assert np.array_equal(sample(), whole)

    def test_model_offload_hooks_change_no_number(self, exported, pipeline):
        """On the CPU the hooks move nothing, but they run: every model must be called by them.

        (Sequential offload cannot run on a CPU, in diffusers' own pipelines neither.)
        """
        expected = pipeline(PROMPT, "depth", num_inference_steps=2, generator=seeded())
        offloaded = exported.open()
        offloaded.enable_model_cpu_offload(device="cpu")
        names = [type(hook.model).__name__ for hook in offloaded._all_hooks]
        assert names == ["T5EncoderModel", "UDPDiffTransformer3DModel", "AutoencoderKLCogVideoX"]
        moved = []
        for hook in offloaded._all_hooks:
            model, before = hook.model, hook.model._hf_hook.pre_forward

            def note(module, *args, before=before, **kwargs):
                moved.append(type(module).__name__)
                return before(module, *args, **kwargs)

            model._hf_hook.pre_forward = note
        out = offloaded(PROMPT, "depth", num_inference_steps=2, generator=seeded())
        assert list(dict.fromkeys(moved)) == names
        np.testing.assert_array_equal(out.depth, expected.depth)

    def test_group_offload_changes_no_number(self, exported, pipeline):
        expected = latents_of(pipeline)
        offloaded = exported.open()
        offloaded.transformer.enable_group_offload(
            onload_device=torch.device("cpu"), offload_type="leaf_level"
        )
        assert torch.equal(latents_of(offloaded), expected)


def test_patches_over_time_get_frames_in_front_that_are_cut_off(pipeline):
    """CogVideoX 1.5: 3 latent frames do not fill patches of two."""
    torch.manual_seed(0)
    components = pipeline.components
    config = dict(pipeline.transformer.config) | {"patch_size": 2, "patch_size_t": 2}
    components["transformer"] = UDPDiffTransformer3DModel.from_config(config)
    pipeline = UDPDiffPipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    ends = []
    out = pipeline(
        PROMPT,
        "depth",
        num_inference_steps=2,
        generator=seeded(),
        output_type="latent",
        callback_on_step_end=lambda _, i, t, tensors: ends.append(tensors["latents"]) or {},
    )
    assert ends[-1].shape == (1, 4, 32, 8, 12)
    assert torch.equal(torch.cat([out.frames, out.dense], dim=2), ends[-1][:, 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": None}, "task: expected one of segmentation, depth, got none"),
        ({"task": "dept"}, r"task: .*\(nearest: depth\), got dept"),
        ({"prompt": None}, "prompt: expected either prompt or prompt_embeds, got neither"),
        ({"prompt": ""}, "prompt: expected some text, got ''"),
        ({"prompt": []}, r"prompt: expected some text, got \[\]"),
        ({"prompt_embeds": torch.zeros(1, 48, 128)}, "prompt: expected either .*, got both"),
        (
            {"prompt": None, "prompt_embeds": torch.zeros(1, 47, 128)},
            r"prompt_embeds: expected shape \(1, 48, 128\), got \(1, 47, 128\)",
        ),
        (
            {"negative_prompt_embeds": torch.zeros(2, 48, 128)},
            r"negative_prompt_embeds: expected shape \(1, 48, 128\), got \(2, 48, 128\)",
        ),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt: expected one, or 1 as of .*, got 2"),
        (
            {"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 48, 128)},
            "negative_prompt: expected it or negative_prompt_embeds, got both",
        ),
        ({"num_frames": 8}, r"number of frames: expected 4k \+ 1, got 8"),
        ({"height": 30}, "height: expected a multiple of 4 pixels"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected 1 .. 1000, got 0"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt: expected at least 1, got 0"),
        ({"guidance": "dynamic"}, r"guidance: expected one of .*\(nearest: dynamic_step\)"),
        (
            {"guidance": "constant", "use_dynamic_cfg": True},
            "guidance: expected it or use_dynamic_cfg, got both",
        ),
        ({"generator": [seeded()] * 2}, "generator: expected one, or a list of 1"),
        (
            {"latents": torch.zeros(1, 3, 16, 8, 12)},
            r"latents: expected shape \(1, 3, 32, 8, 12\), got \(1, 3, 16, 8, 12\)",
        ),
        ({"output_type": "npy"}, r"output_type: .*\(nearest: np\), got npy"),
        (
            {"callback_on_step_end_tensor_inputs": ["latent"]},
            r"callback_on_step_end_tensor_inputs: .*\(nearest: latents\), got latent",
        ),
        ({"max_sequence_length": 0}, "max_sequence_length: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(pipeline, change, message):
    spy, keywords = Spy(pipeline), {"prompt": PROMPT, "task": "depth"} | change
    with pytest.raises(ValueError, match=message) as error:
        pipeline(**keywords)
    assert "\n" not in str(error.value)
    assert spy.calls == []
