"""One training: loading, the steps with what happens between them, saving, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import platform
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_lora.commands import EXIT_INTERRUPTED, StepFailed
from ace_lora.processes import is_first_process, process_number, say
from ace_lora.training.prepare import Prepared, crops_lyrics, last_lora_file, max_frames

if TYPE_CHECKING:
    import torch

TEXT_ENCODER_GPU_GB = 15  # cards with at least so much memory also hold the text encoder (0.6 GB)
TEXT_TOKENS = 64  # tags of a song, for the memory plan
LYRIC_CACHE_SHARE = 0.25  # of the free main memory, for the lyric states of all songs
RECORD_CACHE_SHARE = 0.25  # of what is free then, for records

# --- Stopping ---


class StopRequest:
    """Whether someone wants the run to end: a file named STOP in the output folder, or a signal."""

    def __init__(self, output_dir: Path):
        from ace_lora.training.checkpoints import STOP_NAME

        self.path = output_dir / STOP_NAME
        self.signalled = False
        self._earlier: dict[int, Any] = {}

    def requested(self) -> bool:
        return self.signalled or self.path.is_file()

    def forget_file(self, older_than: float = math.inf) -> bool:
        """Remove the STOP file, if it is older than a time in seconds since the epoch; whether it was removed."""
        try:
            if not self.path.is_file() or self.path.stat().st_mtime >= older_than:
                return False
            self.path.unlink()
        except FileNotFoundError:  # gone meanwhile
            return False
        return True

    def install(self) -> None:
        """From now on the first signal asks to stop after the step; a second one interrupts at once."""
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None:
                self._earlier[number] = signal.getsignal(number)
                signal.signal(number, self._on_signal)

    def remove(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _on_signal(self, number: int, frame: object) -> None:
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of printing a line
            say("Stopping after this step, then saving. (Once more: stop at once, without saving.)")


# --- The run ---


class Run:
    """One training from loading to its last checkpoint."""

    def __init__(self, args: argparse.Namespace, prepared: Prepared, stop: StopRequest):
        self.args = args
        self.prepared = prepared
        self.stop = stop
        self.output_dir = Path(args.output_dir)
        values = prepared.state.values if prepared.state else {}
        self.first_step: int = values.get("step", 0)
        self.run_id: str = values.get("run_id") or uuid.uuid4().hex
        self.last_saved: Path | None = prepared.resume_from
        self.saved_step = self.first_step

    # Loading

    def load(self) -> None:
        """Load text encoder and transformer, put the adapter in, and cache what stays constant."""
        with memory_failures_told(self):
            self._load()

    def _load(self) -> None:
        import torch

        from ace_lora.device import set_tf32
        from ace_lora.lora import layers as adapter
        from ace_lora.training.batches import SampleSettings, SongDataset
        from ace_lora.training.step import ConditionEncoder
        from ace_lora.v1.flow_matching import build_schedule
        from ace_lora.v1.text_encoder import comma_id, load_text_tokenizer
        from ace_lora.v1.transformer import TransformerConfig

        args, prepared = self.args, self.prepared
        self.device = prepared.device.torch_device
        if self.device.type == "cuda":
            set_tf32()
        base_config = TransformerConfig.from_json(prepared.weights["transformer"] / "config.json")
        features = self.compute_features()
        encode_text = self.load_text_encoder()

        if args.compile:
            from ace_lora.model.elementwise import compile_elementwise

            say(compile_elementwise(self.device) or "compiled: the parts between the matrix products")
        self.model = self.load_base()
        self.adapter = adapter.adapter_tensors(self.model)
        if prepared.state:
            with torch.no_grad():
                for key, parameter in self.adapter.items():
                    parameter.copy_(prepared.state.tensors[f"adapter/{key}"])
        elif args.last_lora_path:
            adapter.load_lora(self.model, last_lora_file(args))
            say(f"starting from the weights of '{args.last_lora_path}'")
        if args.ssl_coeff == 0:
            # The heads do not run, so adapters in them stay as they are.
            in_heads = [parameter for key, parameter in self.adapter.items() if key.startswith("projectors.")]
            for parameter in in_heads:
                parameter.requires_grad_(False)
            if not in_heads:
                self.model.drop_ssl_heads()
        self.trained = {key: parameter for key, parameter in self.adapter.items() if parameter.requires_grad}
        self.model.eval()
        self.flow = build_schedule(args.shift)
        lyric_states = self.cache_lyrics()
        self.conditions = ConditionEncoder(encode_text, lyric_states)
        self.dataset = SongDataset(
            prepared.songs,
            SampleSettings(
                seed=args.seed,
                tag_dropout=args.tag_dropout,
                lyrics_dropout=args.lyrics_dropout,
                ssl=args.ssl_coeff > 0,
                max_frames=max_frames(args),
                comma_id=comma_id(load_text_tokenizer(prepared.weights["text_encoder"])),
                lyric_vocabulary=prepared.weights.get("lyric_vocabulary"),
                embedding_rows=base_config.lyric_encoder_vocab_size,
            ),
            features,
            self.record_cache(),
        )
        self.choose_recomputation()

    def load_base(self) -> Any:
        """The frozen transformer with the adapter in it, on the device; quantised and offloaded as the flags say."""
        from ace_lora.base_weights.loading import WrongWeights
        from ace_lora.lora import layers as adapter
        from ace_lora.model.offload import offload_blocks
        from ace_lora.model.quantise import quantise_layers
        from ace_lora.v1.transformer import load_transformer

        args, prepared = self.args, self.prepared
        say("loading the transformer …")
        # What is quantised or stays in main memory never lies on the card as a whole.
        by_way_of_host = args.base_precision != "bf16" or args.offload > 0
        try:
            model = load_transformer(
                prepared.weights["transformer"],
                dtype=prepared.device.dtype,
                device="cpu" if by_way_of_host else self.device,
            )
        except WrongWeights as error:
            raise StepFailed(str(error)) from error
        if args.base_precision != "bf16":
            quantise_layers(model.large_parts(), args.base_precision, None if args.offload else self.device)
            if not args.offload:
                model.to(self.device)
        adapter.inject_adapter(model, prepared.lora_config, seed=args.seed)
        if args.offload:
            offload_blocks(model.transformer_blocks, args.offload, self.device)
        return model.to(self.device) if by_way_of_host else model

    def choose_recomputation(self) -> None:
        """Set which blocks are computed again in the backward pass, and say so."""
        import torch

        from ace_lora.device import free_device_bytes
        from ace_lora.model.recompute import block_memory, set_checkpointing
        from ace_lora.training.memory_plan import Recomputation, choose_recomputation

        args, songs = self.args, [self.prepared.songs[place] for place in self.prepared.training_places]
        layers = len(self.model.transformer_blocks)
        if args.checkpointing == "auto":
            limit = max_frames(args)
            longest = max(min(song.frames, limit or song.frames) for song in songs) * args.batch_size
            context = (1 + TEXT_TOKENS + max(song.lyric_tokens for song in songs)) * args.batch_size
            item_bytes = torch.empty((), dtype=self.prepared.device.dtype).element_size()
            base, rank = self.model.config, self.prepared.lora_config["r"]
            widths = base.inner_dim, base.feed_forward_dim, base.num_attention_heads
            memory = block_memory(*widths, longest, context, item_bytes, rank)
            free = free_device_bytes(self.device)
            if free is None:
                chosen, why = Recomputation(layers, 0), "free memory unknown"
            else:
                if args.memory_limit_gb:
                    free = min(free, int(args.memory_limit_gb * 2**30) - (allocated_bytes(self.device) or 0))
                # Gradients and moments come on top of what is allocated now.
                parameters = sum(parameter.numel() for parameter in self.trained.values())
                chosen = choose_recomputation(layers, memory, free - 12 * parameters)
                why = f"{free / 1e9:.1f} GB free"
        else:
            number = {"all": layers, "none": 0}.get(args.checkpointing)
            chosen = Recomputation(min(layers, int(args.checkpointing)) if number is None else number, 0)
            why = "asked for"
        set_checkpointing(self.model.transformer_blocks, chosen.blocks, chosen.products)
        say(
            f"computed again in the backward pass: {chosen.blocks} of {layers} blocks, and the largest product of "
            f"{chosen.products} others ({args.checkpointing}, {why})"
        )

    def load_text_encoder(self) -> Any:
        """A function from ids [1,Lt] to states [1,Lt,text width] in main memory."""
        import torch

        from ace_lora.v1.text_encoder import load_text_encoder

        on_card = self.args.text_encoder == "gpu"
        if self.args.text_encoder == "auto" and self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory / 2**30
            on_card = memory >= TEXT_ENCODER_GPU_GB
        device = self.device if on_card else torch.device("cpu")
        dtype = self.prepared.device.dtype if device.type != "cpu" else torch.float32
        encoder = load_text_encoder(self.prepared.weights["text_encoder"], device=device, dtype=dtype)
        if device.type != self.device.type:
            say("text encoder: in main memory, ahead of the card")
        # On a stream of its own it need not wait for the step under way, nor the thread that reads ahead.
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(device))

        def encode(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                ids = ids.to(device)
                mask = torch.ones_like(ids) if mask is None else mask.to(device)
                return encoder(input_ids=ids, attention_mask=mask).last_hidden_state.cpu()

        return encode

    def compute_features(self) -> dict[int, dict[str, torch.Tensor]]:
        """SSL features of the songs whose records leave them to the training."""
        places = [
            place
            for place, song in enumerate(self.prepared.songs)
            if self.args.ssl_coeff > 0 and song.ssl == "at_training"
        ]
        if not places:
            return {}
        from ace_lora.training.ssl_at_training import compute_features

        return compute_features(self.prepared.songs, places, self.prepared.weights, self.prepared.device)

    def cache_lyrics(self) -> dict[str, torch.Tensor] | None:
        """Lyric states [Ll,D] by song, and the lyric branch off the card; None where every step needs it."""
        import torch

        from ace_lora.device import free_device_memory, free_main_memory
        from ace_lora.records.record import read_record

        if any(key.startswith(("lyric_encoder.", "lyric_proj.")) for key in self.adapter):
            return None
        if crops_lyrics(self.args, self.prepared.songs):
            say("lyric branch: in every step, because pieces of songs with timed lyrics are trained")
            return None
        size = torch.empty((), dtype=self.prepared.device.dtype).element_size() * self.model.config.inner_dim
        needed = size * sum(song.lyric_tokens for song in self.prepared.songs)
        free = free_main_memory()
        if free is not None and needed > LYRIC_CACHE_SHARE * free:
            say(f"lyric branch: in every step, because {needed / 1e9:.1f} GB for its results are too much to keep")
            return None
        states = {}
        with torch.no_grad():
            for song in self.prepared.songs:
                ids = read_record(song.path, ssl=False).lyric_token_ids
                states[song.name] = self.model.encode_lyrics(ids[None].to(self.device))[0].cpu()
        self.model.drop_lyric_branch()
        free_device_memory(self.device)
        return states

    def record_cache(self) -> Any:
        """Room for the records in the main memory that is free now."""
        from ace_lora.device import free_main_memory
        from ace_lora.records.cache import RecordCache

        records = sum(song.path.stat().st_size for song in self.prepared.songs)
        room = int((free_main_memory() or 0) * RECORD_CACHE_SHARE / self.args.devices)
        if records > room:
            say(f"records: {room / 1e9:.1f} of their {records / 1e9:.1f} GB stay in main memory, the rest is read anew")
        return RecordCache(room)

    # Training

    def train(self) -> None:
        from ace_lora.training.checkpoints import remove_leftovers
        from ace_lora.training.metrics import MetricsLog, SmoothedLoss, StepLines
        from ace_lora.training.step import NotFinite
        from ace_lora.training.validation import Validation

        args, prepared = self.args, self.prepared
        self.smooth = SmoothedLoss()
        earlier_metrics = self.make_optimizer()
        batches = self.make_batches()
        self.validation = None
        if prepared.validation_places and is_first_process():
            self.validation = Validation(self.dataset, prepared.validation_places, self.conditions)
        self.lines = StepLines(prepared.max_steps)
        self.module = self.make_module(batches)
        if is_first_process():
            remove_leftovers(self.output_dir)
        settings = {**vars(args), "resolved_precision": prepared.precision, "resolved_max_steps": prepared.max_steps}
        self.metrics = MetricsLog(
            args.logger if is_first_process() else "none",
            Path(args.log_dir),
            args.exp_name,
            settings,
            earlier=earlier_metrics,
            first_step=self.first_step,
        )
        if self.metrics.csv_path:
            say(f"metrics: {self.metrics.csv_path}")
        self.epoch = 0
        self.outcome = "done"
        try:
            with memory_failures_told(self), interruption_of_lightning():
                self.make_lightning_trainer().fit(self.module)
        except NotFinite as error:
            raise StepFailed(self.after_not_finite(error)) from error
        finally:
            self.stop.remove()
            batches.close()
            self.metrics.close()
        self.say_outcome()

    def make_optimizer(self) -> Path | None:
        """Make optimizer, averages and loss scaler, as a resumed run had left them; the metrics.csv of that run."""
        import torch

        from ace_lora.training.checkpoints import unpack
        from ace_lora.training.metrics import SmoothedLoss
        from ace_lora.training.optimizers import build_optimizer, restore_optimizer
        from ace_lora.training.step import AdapterAverage

        args, prepared = self.args, self.prepared
        self.optimizer = build_optimizer(
            args.optimizer,
            self.trained.values(),
            learning_rate=args.learning_rate,
            betas=(args.beta1, args.beta2),
            weight_decay=args.weight_decay,
            loss_scaling=prepared.precision == "16-mixed",
        )
        self.average = AdapterAverage(self.trained, args.ema_decay) if args.ema_decay > 0 else None
        self.scaler = torch.amp.GradScaler(self.device.type) if prepared.precision == "16-mixed" else None
        if prepared.state is None:
            say(f"starting at step 0/{prepared.max_steps}")
            return None
        values, tensors = prepared.state.values, prepared.state.tensors
        restore_optimizer(self.optimizer, unpack(values["optimizer"], tensors))
        if self.average:
            self.average.updates = values["ema_updates"]
            self.average.tensors = {key: tensors[f"ema/{key}"].to(self.device) for key in self.trained}
        if self.scaler:
            self.scaler.load_state_dict(values["scaler"])
        self.smooth = SmoothedLoss(*values["loss_smooth"])
        say(
            f"resuming at step {self.first_step}/{prepared.max_steps} (epoch {values['epoch']}, loss "
            f"{self.smooth.value:.4f}) from '{prepared.resume_from}'"
        )
        prepared.state = None  # its tensors are in the model and the optimizer now
        return Path(values["metrics"]) if values["metrics"] else None

    def make_batches(self) -> Any:
        """The batches of the steps to come, read ahead."""
        from ace_lora.training.batches import Prefetcher, SongDataset, batch_stream

        prepared = self.prepared
        features = self.dataset.features
        songs = SongDataset(
            [prepared.songs[place] for place in prepared.training_places],
            self.dataset.settings,
            {new: features[old] for new, old in enumerate(prepared.training_places) if old in features},
            self.dataset.cache,
        )
        stream = batch_stream(
            songs,
            prepared.plan,
            first=self.first_step,
            last=prepared.max_steps,
            process=process_number(),
            num_workers=self.args.num_workers,
        )

        def ready(batch: Any) -> Any:
            batch = self.conditions(batch)
            return batch.pin_memory() if self.device.type == "cuda" else batch

        return Prefetcher(stream, ready, (prepared.max_steps - self.first_step) * prepared.plan.accumulate)

    def make_module(self, batches: Any) -> Any:
        from ace_lora.training.step import LoraTraining, StepSettings

        args = self.args
        return LoraTraining(
            self.model,
            self.flow,
            self.trained,
            self.optimizer,
            StepSettings(
                optimizer=args.optimizer,
                learning_rate=args.learning_rate,
                warmup_steps=args.warmup_steps,
                max_steps=self.prepared.max_steps,
                ssl_coeff=args.ssl_coeff,
            ),
            plan=self.prepared.plan,
            batches=batches,
            on_start=self.on_start,
            on_step=self.on_step,
            on_report=self.on_report,
            first_step=self.first_step,
            average=self.average,
        )

    def make_lightning_trainer(self) -> Any:
        from lightning.pytorch import Trainer
        from lightning.pytorch.plugins import MixedPrecision, Precision

        args = self.args
        kind = {"cuda": "gpu"}.get(self.device.type, self.device.type)
        devices: Any = args.devices
        if kind == "gpu" and args.devices == 1:
            devices = [self.device.index or 0]
        mixed = self.prepared.precision != "32-true"
        # Made here and not by Lightning, which would replace fp16 on a CPU by bf16 without a word.
        plugin = MixedPrecision(self.prepared.precision, self.device.type, self.scaler) if mixed else Precision()  # type: ignore[arg-type]
        strategy = args.strategy
        if strategy == "auto" and args.devices * args.num_nodes > 1:
            strategy = "ddp"
        return Trainer(
            accelerator=kind,
            devices=devices,
            num_nodes=args.num_nodes,
            strategy=strategy,
            plugins=[plugin],
            max_epochs=-1,
            max_steps=self.prepared.max_steps - self.first_step,
            accumulate_grad_batches=args.accumulate_grad_batches,
            gradient_clip_val=args.gradient_clip_val or None,
            gradient_clip_algorithm=args.gradient_clip_algorithm if args.gradient_clip_val else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=self.output_dir,
        )

    def on_start(self) -> None:
        """Called when Lightning begins; by then it has set its own handlers, which ours replace."""
        self.stop.install()
        if self.validation and self.first_step == 0:
            loss = self.validation_loss()
            say(f"validation loss {loss:.4f} at step 0")
            self.metrics.write({"step": 0, "epoch": 0, "val_loss": loss})
        self.lines.restart_clock()
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)

    def on_report(self, report: Any) -> None:
        """Log a step, once its numbers are known."""
        from ace_lora.training.optimizers import PRODIGIES, d_warning

        args = self.args
        self.epoch = report.epoch
        loss = report.values["loss"]
        self.row = {
            "step": report.step,
            "epoch": report.epoch,
            **report.values,
            "loss_smooth": self.smooth.update(loss),
            "seconds_per_step": self.lines.step_done(),
            "peak_memory_gb": peak_memory_gb(self.device),
        }
        say(self.lines.line(report.step, loss, report.values["learning_rate"]))
        if not self.validates_after(report.step):
            self.metrics.write(self.row)
        if args.optimizer in PRODIGIES and report.step == min(self.prepared.max_steps, args.warmup_steps + 100):
            warning = d_warning(report.values["prodigy_d"], report.step)
            if warning:
                say(f"warning: {warning}")

    def validates_after(self, step: int) -> bool:
        last = self.prepared.max_steps
        return self.validation is not None and (step == last or step % (self.args.val_every or last) == 0)

    def on_step(self, step: int, epoch: int) -> bool:
        """Validate and save after a step; true when the run is to end."""
        last = step == self.prepared.max_steps
        if self.validates_after(step):
            self.module.settle()
            self.row["val_loss"] = self.validation_loss()
            say(f"validation loss {self.row['val_loss']:.4f} at step {step}")
            self.metrics.write(self.row)
            self.lines.restart_clock()
        stopping = self.module.agree(self.stop.requested())
        if stopping and not last:
            self.outcome = "stopped"
        if stopping or last or step % self.args.save_every_n_train_steps == 0:
            self.module.settle()
            self.save(step, epoch)
            self.lines.restart_clock()
        return stopping

    @contextlib.contextmanager
    def weights_to_keep(self) -> Iterator[None]:
        """The weights that a listener should get, in place of those being trained: averages, where there are any.

        What is trained comes back bit for bit, so that saving more or less often changes nothing.
        """
        import torch

        schedule_free = hasattr(self.optimizer, "eval") and hasattr(self.optimizer, "train")
        if not schedule_free and self.average is None:
            yield
            return
        training = {key: parameter.detach().clone() for key, parameter in self.adapter.items()}
        groups = [dict(group) for group in self.optimizer.param_groups]
        try:
            if schedule_free:
                self.optimizer.eval()  # type: ignore[attr-defined]
            if self.average:
                with torch.no_grad():
                    for key, parameter in self.trained.items():
                        parameter.copy_(self.average.tensors[key])
            yield
        finally:
            for group, before in zip(self.optimizer.param_groups, groups, strict=True):
                group.update({name: value for name, value in before.items() if name != "params"})
            with torch.no_grad():
                for key, parameter in self.adapter.items():
                    parameter.copy_(training[key])

    def validation_loss(self) -> float:
        from ace_lora.training.step import training_losses

        def loss(batch: Any) -> Any:
            batch = batch.to(self.device)
            return training_losses(self.model, self.flow, batch, ssl_coeff=0)["denoising_loss"]

        assert self.validation is not None
        with self.weights_to_keep():
            return self.validation.loss(loss)

    # Saving

    def save(self, step: int, epoch: int) -> None:
        """Write the checkpoint of this step and remove this run's oldest."""
        from safetensors import SafetensorError

        from ace_lora.training.checkpoints import (
            SavedState,
            checkpoint_bytes,
            free_bytes,
            pack,
            remove_old,
            set_aside,
            write_checkpoint,
        )

        if not is_first_process():
            return
        args = self.args
        count = sum(parameter.numel() for parameter in self.adapter.values())
        needed = checkpoint_bytes(count, args.optimizer, ema=args.ema_decay > 0, comfyui=args.save_comfyui)
        free = free_bytes(self.output_dir)
        if free < needed:
            raise StepFailed(
                f"The disk is full: a checkpoint in '{self.output_dir}' needs {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free. {self.where_to_go_on()} Free the disk, then add --resume."
            )
        # Copies: below, other weights stand in the adapter for a moment.
        tensors = {f"adapter/{key}": parameter.detach().cpu().clone() for key, parameter in self.adapter.items()}
        if self.average:
            tensors |= {f"ema/{key}": tensor for key, tensor in self.average.tensors.items()}
        values = {
            "run_id": self.run_id,
            "step": step,
            "epoch": epoch,
            "fit": self.prepared.fit,
            "settings": vars(args),
            "optimizer": pack(self.optimizer.state_dict(), tensors, "optimizer"),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "ema_updates": self.average.updates if self.average else 0,
            "loss_smooth": [self.smooth.total, self.smooth.weight],
            "metrics": str(self.metrics.csv_path.absolute()) if self.metrics.csv_path else None,
            "versions": software_versions(),
        }
        aside = set_aside(self.output_dir, epoch, step)
        if aside:
            say(f"set aside: {aside}, which has no training state that can be read")
        try:
            with self.weights_to_keep():
                folder = write_checkpoint(
                    self.output_dir,
                    epoch=epoch,
                    step=step,
                    lora=self.adapter,
                    config=self.prepared.lora_config,
                    metadata=self.lora_metadata(step, epoch),
                    state=SavedState(values, tensors),
                    comfyui=args.save_comfyui,
                )
        except (OSError, SafetensorError) as error:
            # Quotas and limits of file sizes are not seen in the free space.
            raise StepFailed(
                f"The checkpoint of step {step} cannot be written to '{self.output_dir}': {error}. "
                f"{self.where_to_go_on()} Free the disk or mend what is wrong with it, then add --resume."
            ) from error
        self.last_saved, self.saved_step = folder, step
        say(f"saved: {folder}")
        for removed in remove_old(self.output_dir, self.run_id, args.save_last, folder):
            say(f"removed: {removed} (--save_last {args.save_last})")
        if free_bytes(self.output_dir) < needed and step < self.prepared.max_steps:
            say(
                f"warning: {free_bytes(self.output_dir) / 1e9:.2f} GB are free, the next checkpoint needs "
                f"{needed / 1e9:.2f} GB. Free the disk before step {step + args.save_every_n_train_steps}."
            )

    def lora_metadata(self, step: int, epoch: int) -> dict[str, str]:
        """What the header of the LoRA file tells about its training; texts, as safetensors wants."""
        songs = [self.prepared.songs[place] for place in self.prepared.training_places]
        tags = Counter(tag for song in songs for tag in song.tags)
        config = self.prepared.lora_config
        return {
            "base_model": "ACE-Step v1 (" + self.prepared.weights["transformer"].name + ")",
            "base_model_fingerprint": self.prepared.base_fingerprint,
            "rank": str(config["r"]),
            "alpha": str(config["lora_alpha"]),
            "use_rslora": json.dumps(config["use_rslora"]),
            "steps": str(step),
            "epoch": str(epoch),
            "songs": str(len(songs)),
            "tags": json.dumps(dict(tags.most_common()), ensure_ascii=False),
            "optimizer": self.args.optimizer,
            "learning_rate": str(self.args.learning_rate),
            "ema_decay": str(self.args.ema_decay),
            "versions": json.dumps(software_versions()),
        }

    # Ends

    def where_to_go_on(self) -> str:
        if self.last_saved is None:
            return "No checkpoint has been saved yet."
        return f"The last good checkpoint is '{self.last_saved}' (step {self.saved_step})."

    def after_not_finite(self, error: Exception) -> str:
        """Save what the steps before the bad one came to, and say what can be done."""
        import torch

        step = self.module.steps_done
        good = all(bool(torch.isfinite(parameter).all()) for parameter in self.adapter.values())
        if good and step > self.saved_step:
            self.save(step, self.epoch)
        return (
            f"{error} Nothing of it reached the weights. {self.where_to_go_on()} Take the song out of the data set or "
            "preprocess it again; if it happens at many songs, lower --learning_rate."
        )

    def say_outcome(self) -> None:
        step = self.module.steps_done
        if is_first_process():
            self.stop.forget_file()
        if self.outcome == "stopped":
            say(f"stopped at step {step}/{self.prepared.max_steps}: {self.last_saved}. Add --resume to go on.")
            if self.stop.signalled:
                raise SystemExit(EXIT_INTERRUPTED)
        else:
            say(f"done: {step} steps, {self.last_saved}")


# --- The machine ---


@contextlib.contextmanager
def memory_failures_told(run: Run) -> Iterator[None]:
    """Turn running out of memory into what a user can act on."""
    import torch

    from ace_lora.device import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        on_card = isinstance(error, torch.OutOfMemoryError) or "MPS" in str(error)
        where = "card's memory" if on_card else "main memory"
        raise StepFailed(
            f"The {where} is full. "
            f"{run.where_to_go_on()} Close other programs, or save memory: the same command with --trial finds "
            "settings that fit."
        ) from error


@contextlib.contextmanager
def interruption_of_lightning() -> Iterator[None]:
    """Lightning ends the process itself when it is interrupted, with a status that means failure; undo that."""
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error


def peak_memory_gb(device: torch.device) -> float | None:
    """Most memory of the card that tensors took so far, None on other devices."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def allocated_bytes(device: torch.device) -> int | None:
    """Memory of the card that is in use by this process now, None on other devices."""
    import torch

    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


def software_versions() -> dict[str, str]:
    """Versions of what the numbers of a training depend on."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "lightning", "peft", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
