"""Trains the demo model, stage by stage. See README.md for the commands.

    autoencoder   pictures -> latents -> pictures
    latents       draws pictures and encodes them, once
    denoiser      text encoder and UNet together, on the encoded pictures (first small ones, then full size)
    export        writes the diffusers folder

Every stage keeps its state in the work folder and goes on from there when started again.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import model
import scenes as S
from drawing import Painter

EMPTY_CAPTION = 0.1
STARTED = time.time()


class Trainer:
    """Steps one loss function: AdamW, warm-up and cosine decay, clipped gradients, averaged weights, checkpoints."""

    def __init__(self, args, name, networks):
        self.args, self.path, self.averaged_path = args, args.work / f"{name}.pt", args.work / f"{name}-averaged.pt"
        self.networks = networks
        self.weights = [p for net in networks.values() for p in net.parameters() if p.requires_grad]
        self.cuda = args.device == "cuda"
        if args.start and not self.path.exists():
            self.load_averaged(args.start)
        # The learning rate is a tensor so that a captured CUDA graph sees it change.
        rate = torch.tensor(args.rate / 100, device=args.device)
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=self.cuda, capturable=self.cuda
        )
        self.averaged = [p.detach().clone() for p in self.weights]
        self.step, self.spent = 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, map_location=args.device)
            for key, net in networks.items():
                net.load_state_dict(state["networks"][key])
            self.optimizer.load_state_dict(state["optimizer"])
            self.averaged = state["averaged"]
            self.step, self.spent = state["step"], state["spent"]
            print(f"{name}: goes on at step {self.step}", flush=True)

    def load_averaged(self, path):
        state = torch.load(path, map_location=self.args.device)
        for key, net in self.networks.items():
            net.load_state_dict(state[key])

    @torch.no_grad()
    def save(self):
        state = {
            "networks": {key: net.state_dict() for key, net in self.networks.items()},
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "step": self.step,
            "spent": self.spent,
        }
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)
        own = [p.clone() for p in self.weights]
        torch._foreach_copy_(self.weights, self.averaged)
        torch.save({key: net.state_dict() for key, net in self.networks.items()}, self.averaged_path)
        torch._foreach_copy_(self.weights, own)

    def run(self, loss_function, between=lambda step: None):
        """Trains until `--steps` or `--minutes` are over. `between` runs before each step, outside any CUDA graph."""
        args = self.args
        ramp = 1 - args.average

        def advance():
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(args.device, torch.bfloat16, enabled=self.cuda, cache_enabled=False):
                loss = loss_function()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(self.averaged, self.weights, ramp)
            return loss.detach()

        if args.compile:
            fuse(self.networks)
        between(0)
        stepper = captured(advance) if self.cuda else advance
        print(f"ready after {time.time() - STARTED:.1f} s", flush=True)
        total, count, reported, saved = 0.0, 0, time.time(), time.time()
        progress = max(self.step / args.steps, self.spent / (60 * args.minutes))
        # Setting up counts, so that a run ends when its time is over.
        begin, leave = STARTED - self.spent, STARTED + 60 * args.pause
        while progress < 1 and time.time() < leave:
            warm = min(1.0, (self.step + 1) / args.warmup)
            rate = args.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in self.optimizer.param_groups:
                group["lr"].fill_(rate)
            between(self.step)
            if self.step in (args.warmup, 5 * args.warmup):
                # The average should not remember how the networks began.
                with torch.no_grad():
                    torch._foreach_copy_(self.averaged, self.weights)
            total, count = total + stepper(), count + 1
            self.step += 1
            progress = max(progress, self.step / args.steps)
            if self.step % args.report == 0 or progress >= 1 or time.time() >= leave:
                mean = float(total) / count  # waits for the device
                now = time.time()
                self.spent = now - begin
                progress = max(progress, self.spent / (60 * args.minutes))
                print(
                    f"step {self.step} loss {mean:.5f} rate {rate:.2e} {count / (now - reported):.1f} steps/s "
                    f"{self.spent:.0f} s",
                    flush=True,
                )
                total, count, reported = 0.0, 0, now
                if not math.isfinite(mean):
                    raise SystemExit("the loss is no longer finite")
                if now - saved > 120 and not self.cuda:
                    self.save()
                    saved = now
        self.save()


def captured(advance):
    """One CUDA graph for the whole step, because the networks are so small that launching them costs more than running.

    Falls back to plain calls where something in the step cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        try:
            advance()
        except Exception as error:  # the compiler's own, of any class
            print(f"not compiled: {type(error).__name__}: {str(error)[:300]}", flush=True)
            torch.compiler.set_stance("force_eager")
        for _ in range(4):
            advance()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            loss = advance()
    except RuntimeError as error:
        print(f"no CUDA graph: {str(error).splitlines()[0]}", flush=True)
        torch.cuda.synchronize()
        return advance

    def replay():
        graph.replay()
        return loss

    return replay


def fuse(networks):
    """Compiles the networks in place. Worth its minute only for long runs on a GPU."""
    import diffusers.models.upsampling

    # A question about the version of torch that the compiler cannot follow.
    diffusers.models.upsampling.is_torch_version = lambda *_: False
    for net in networks.values():
        for part in (net.encoder, net.decoder) if hasattr(net, "decoder") else (net,):
            part.compile()


class Pictures:
    """A pool of drawn pictures, a part of which is drawn anew between steps."""

    def __init__(self, args):
        self.args, self.painter = args, Painter(args.device)
        self.pool = torch.cat([self.draw(args.chunk) for _ in range(args.pool)])
        self.turn = 0

    def draw(self, count):
        loose = int(count * self.args.confetti)
        plain = self.painter.scenes(S.random_scenes(count - loose, self.args.device))
        return torch.cat([plain, self.painter.confetti(loose)]).to(torch.float16)

    def renew(self, step):
        if step % self.args.renew == 0:
            at = self.turn % self.args.pool * self.args.chunk
            self.pool[at : at + self.args.chunk] = self.draw(self.args.chunk)
            self.turn += 1

    def batch(self):
        which = torch.randint(len(self.pool), (self.args.batch,), device=self.args.device)
        pictures = self.pool[which].float()
        if self.args.crop < model.IMAGE:
            y, x = torch.randint(model.IMAGE - self.args.crop + 1, (2,)).tolist()
            pictures = pictures[:, :, y : y + self.args.crop, x : x + self.args.crop]
        return pictures


def edges(x):
    """Horizontal and vertical differences."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output, target):
    """Absolute error of the pixels, of their differences, and of two coarser copies of the picture."""
    loss = (output - target).abs().mean()
    for a, b in zip(edges(output), edges(target)):
        loss = loss + (a - b).abs().mean()
    for scale in (2, 4):
        loss = loss + 0.5 * (F.avg_pool2d(output, scale) - F.avg_pool2d(target, scale)).abs().mean()
    return loss


def train_autoencoder(args):
    vae = model.autoencoder().to(args.device)
    if args.decoder_only:
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
        vae.post_quant_conv.requires_grad_(True)
    trainer = Trainer(args, "decoder" if args.decoder_only else "autoencoder", {"vae": vae})
    pictures = Pictures(args)

    def loss():
        target = pictures.batch()
        moments = vae.quant_conv(vae.encoder(target)).float()
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        spread = torch.exp(0.5 * logvar)
        if args.decoder_only:
            # What the denoiser hands over is a little off: the decoder learns to draw straight lines all the same.
            spread = args.noise * torch.rand(len(mean), 1, 1, 1, device=args.device)
        latents = mean + spread * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        output = vae.decoder(vae.post_quant_conv(latents)).float()
        return reconstruction_loss(output, target) + args.kl * divergence

    trainer.run(loss, pictures.renew)
    trainer.load_averaged(trainer.averaged_path)
    report_autoencoder(args, vae, pictures.painter)


@torch.no_grad()
def report_autoencoder(args, vae, painter, count=256):
    """Prints how well held-out pictures come back, and the statistics of their latents."""
    vae.eval()
    torch.compiler.set_stance("force_eager")
    picture = painter.scenes(S.random_scenes(count, args.device, keep=S.held_out))
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in picture.split(32)])
    moments = vae.encode(picture[:32]).latent_dist
    output = torch.cat([vae.decode(part).sample for part in latents.split(32)]).clamp(-1, 1)
    error = (output - picture) / 2
    each = -10 * torch.log10(error.square().mean(dim=(1, 2, 3)))
    print(f"PSNR {each.mean():.2f} dB, worst {each.min():.2f} dB, mean |error| {error.abs().mean() * 255:.2f} levels")
    print("latents: mean", latents.mean(dim=(0, 2, 3)).tolist(), "std", latents.std(dim=(0, 2, 3)).tolist())
    print(f"posterior std {moments.std.mean():.4f}", flush=True)


@torch.no_grad()
def encode_latents(args):
    vae = model.autoencoder().to(args.device)
    vae.load_state_dict(torch.load(args.work / "autoencoder-averaged.pt", map_location=args.device)["vae"])
    vae.eval()
    painter, rows, latents = Painter(args.device), [], []
    while sum(map(len, rows)) < args.count:
        part = S.random_scenes(args.chunk, args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            mean = vae.encode(painter.scenes(part, args.size)).latent_dist.mode()
        rows.append(part.to(torch.int16).cpu())
        latents.append(mean.to(torch.float16).cpu())
    rows, latents = torch.cat(rows), torch.cat(latents)
    scale = 1 / latents[:20000].float().std().item()
    torch.save({"scenes": rows, "latents": latents, "scale": scale}, args.work / f"latents-{args.size}.pt")
    print(f"{len(rows)} pictures of {args.size} px, scaling factor {scale:.5f}", flush=True)


def train_denoiser(args):
    net, text = model.unet().to(args.device), model.text_encoder().to(args.device)
    data = torch.load(args.work / f"latents-{args.size}.pt")
    rows, latents = data["scenes"].long().to(args.device), data["latents"].to(args.device)
    captions = S.Captioner(model.VOCAB, model.TOKENS, args.device)
    empty = torch.full((1, model.TOKENS), captions.end, device=args.device)
    empty[0, 0] = captions.start
    alphas = model.scheduler().alphas_cumprod.to(args.device)
    ratio = alphas / (1 - alphas)
    # min-SNR weights (Hang 2023, eq. 5, gamma 5). The floor keeps the noisiest steps, which decide
    # layout and colour, from being neglected.
    weights = ratio.clamp(0.05, 5.0) / ratio
    # One timestep out of each equal slice of the schedule: the loss of a batch varies less.
    slices = torch.arange(args.batch, device=args.device)
    trainer = Trainer(args, f"denoiser-{args.size}", {"unet": net, "text_encoder": text})

    def loss():
        which = torch.randint(len(rows), (args.batch,), device=args.device)
        ids = captions(rows[which])
        drop = torch.rand(args.batch, 1, device=args.device) < EMPTY_CAPTION
        states = text(torch.where(drop, empty, ids)).last_hidden_state
        clean = latents[which].float() * data["scale"]
        noise = torch.randn_like(clean)
        timestep = ((slices + torch.rand(args.batch, device=args.device)) * (1000 / args.batch)).long().clamp(max=999)
        level = alphas[timestep][:, None, None, None]
        noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
        output = net(noisy, timestep, states).sample.float()
        return (weights[timestep] * (output - noise).square().mean(dim=(1, 2, 3))).mean()

    trainer.run(loss)


def export(args):
    vae, net, text = model.autoencoder(), model.unet(), model.text_encoder()
    load = lambda name: torch.load(args.work / name, map_location="cpu", mmap=True)  # noqa: E731
    state = load(f"denoiser-{args.size}-averaged.pt")
    net.load_state_dict(state["unet"])
    text.load_state_dict(state["text_encoder"])
    polished = (args.work / "decoder-averaged.pt").exists()
    vae.load_state_dict(load("decoder-averaged.pt" if polished else "autoencoder-averaged.pt")["vae"])
    scale = args.scale or load(f"latents-{args.size}.pt")["scale"]
    model.export(args.folder, vae, net, text, round(scale, 5))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["autoencoder", "latents", "denoiser", "export"])
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of checkpoints and latents")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="averaged weights to begin from, if the work folder has no state")
    parser.add_argument("--steps", type=float, default=math.inf)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--pause", type=float, default=math.inf, help="leave after so many minutes, to go on later")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=300, help="steps until the highest learning rate")
    parser.add_argument("--average", type=float, default=0.9995, help="decay of the averaged weights")
    parser.add_argument("--compile", action="store_true", help="fuse the networks' kernels first")
    parser.add_argument("--report", type=int, default=100, help="steps between two lines of output")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures of latents and denoiser, in pixels")
    parser.add_argument("--count", type=int, default=40000, help="pictures to encode")
    parser.add_argument("--chunk", type=int, default=64, help="pictures drawn at once")
    parser.add_argument("--pool", type=int, default=16, help="chunks kept for the autoencoder")
    parser.add_argument("--renew", type=int, default=8, help="autoencoder steps between two redrawn chunks")
    parser.add_argument("--crop", type=int, default=128, help="side of the autoencoder's random crops")
    parser.add_argument("--kl", type=float, default=5e-4, help="weight of the autoencoder's KL divergence")
    parser.add_argument("--decoder-only", action="store_true", help="polish the decoder, keep the latents as they are")
    parser.add_argument("--noise", type=float, default=0.1, help="largest error of the latents it is trained on then")
    parser.add_argument("--confetti", type=float, default=0.5, help="share of random pictures for the autoencoder")
    parser.add_argument("--scale", type=float, help="scaling factor, if the latents file is not at hand")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "assets/demo-model")
    args = parser.parse_args()
    if args.stage in ("autoencoder", "denoiser") and args.steps == args.minutes:
        parser.error("say how long to train: --steps or --minutes")
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    stages = {"autoencoder": train_autoencoder, "latents": encode_latents, "denoiser": train_denoiser, "export": export}
    stages[args.stage](args)


if __name__ == "__main__":
    main()
