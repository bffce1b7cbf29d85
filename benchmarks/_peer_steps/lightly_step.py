"""A SimCLR step of lightly's parts around torchvision's ResNet: SGD, channels last, autocast for bfloat16.

Views arrive augmented, as random numbers. Nothing of this project is imported: it runs where TensorFlow is missing.
"""

from __future__ import annotations

import lightly
import serve
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead


def main() -> None:
    """Builds and serves."""
    options = serve.options()
    torch.manual_seed(0)
    encoder = getattr(torchvision.models, f"resnet{options.depth}")(zero_init_residual=True)
    features = encoder.fc.in_features
    encoder.fc = torch.nn.Identity()
    if options.size <= 32:
        encoder.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        encoder.maxpool = torch.nn.Identity()
    model = torch.nn.Sequential(encoder, SimCLRProjectionHead(features, features, 128))
    model = model.to(memory_format=torch.channels_last).train()
    probe = torch.nn.Linear(features, 10)
    parameters = [*model.parameters(), *probe.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    contrast, cross_entropy = NTXentLoss(temperature=0.5), torch.nn.CrossEntropyLoss()
    views = torch.rand(2 * options.images, 3, options.size, options.size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.images,)).repeat(2)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            encoded = model[0](views)
            projected = model[1](encoded)
        loss = contrast(*projected.float().chunk(2)) + cross_entropy(probe(encoded.detach().float()), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    serve.serve(step, f"lightly {lightly.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
