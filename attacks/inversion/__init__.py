"""Layerwise inversion: from the gradient of one image to the input of each layer, from the last to the first.

Shapes throughout: T trials (one image each), C x H x W values of a feature map, O output channels, L output positions,
K values that an output position reads (input channels x kernel height x kernel width).
"""
