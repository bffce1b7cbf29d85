"""Networks: SK-ResNet encoders and the heads on top of them."""
