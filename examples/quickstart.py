"""The classic diffusers quickstart: load, swap, take apart. Only the import line is this library's.

python examples/quickstart.py [TEXT_TO_IMAGE_REPOSITORY PIXEL_REPOSITORY FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import tqdm

from safelight import DDPMScheduler, DiffusionPipeline, EulerDiscreteScheduler, UNet2DConditionModel, UNet2DModel

defaults = ["stable-diffusion-v1-5/stable-diffusion-v1-5", "google/ddpm-cat-256", "outputs/quickstart"]
text_to_image_id, repo_id, folder = sys.argv[1:] or defaults
device = "cuda" if torch.cuda.is_available() else "cpu"
outputs = Path(folder)
outputs.mkdir(parents=True, exist_ok=True)

# Load a pipeline, look at it, make a picture.
pipeline = DiffusionPipeline.from_pretrained(text_to_image_id, use_safetensors=True)
print(pipeline)
pipeline.to(device)
prompt = "An image of a squirrel in Picasso style"
image = pipeline(prompt, generator=torch.Generator("cpu").manual_seed(0)).images[0]
image.save(outputs / "squirrel.png")

# Swap the scheduler: another sampler, the same network.
pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
image = pipeline(prompt, num_inference_steps=25, generator=torch.Generator("cpu").manual_seed(0)).images[0]
image.save(outputs / "squirrel_euler.png")

# Swap the network: one of the same shape, built from a config, with weights of your own.
unet = UNet2DConditionModel.from_config(pipeline.unet.config)
unet.load_state_dict({name: 0.9 * weight for name, weight in pipeline.unet.state_dict().items()})
pipeline = DiffusionPipeline.from_pretrained(text_to_image_id, unet=unet, use_safetensors=True).to(device)
image = pipeline(prompt, num_inference_steps=25, generator=torch.Generator("cpu").manual_seed(0)).images[0]
image.save(outputs / "squirrel_unet.png")

# A model on its own: noise in, the noise that it sees in it out.
model = UNet2DModel.from_pretrained(repo_id, use_safetensors=True)
print(model.config)
torch.manual_seed(0)
noisy_sample = torch.randn(1, model.config.in_channels, model.config.sample_size, model.config.sample_size)
with torch.no_grad():
    noisy_residual = model(sample=noisy_sample, timestep=2).sample

# A scheduler on its own: it takes a little of that noise away.
scheduler = DDPMScheduler.from_pretrained(repo_id)
print(scheduler)
less_noisy_sample = scheduler.step(model_output=noisy_residual, timestep=2, sample=noisy_sample).prev_sample
print(less_noisy_sample.shape)


def save_sample(sample, i):
    image_processed = sample.cpu().permute(0, 2, 3, 1)
    image_processed = ((image_processed + 1.0) * 127.5).round().clamp(0, 255)
    image_pil = PIL.Image.fromarray(image_processed.numpy().astype(np.uint8)[0])
    image_pil.save(outputs / f"step_{i:04}.png")


# Both together are a pipeline: watch noise become a picture.
model.to(device)
sample = noisy_sample.to(device)
for i, t in enumerate(tqdm.tqdm(scheduler.timesteps)):
    # 1. Predict the noise.
    with torch.no_grad():
        residual = model(sample, t).sample
    # 2. Take a part of it away.
    sample = scheduler.step(residual, t, sample).prev_sample
    # 3. Every 50 steps, look.
    if (i + 1) % 50 == 0:
        save_sample(sample, i + 1)
