"""Floor 1: the layers, one file each, written with the ops. Importing the package registers their rules."""

from . import activation, arithmetic, convolution, dropout, indexing, linear, normalisation_rules, pooling, shape
from .base import Layer, Pairs, Tensors, add, add_each, gradients
from .opaque import Opaque, OpaqueModule
from .registry import Application, rule_of_function, rule_of_method, rule_of_module

__all__ = [
    "Application",
    "Layer",
    "Opaque",
    "OpaqueModule",
    "Pairs",
    "Tensors",
    "activation",
    "add",
    "add_each",
    "arithmetic",
    "convolution",
    "dropout",
    "gradients",
    "indexing",
    "linear",
    "normalisation_rules",
    "pooling",
    "rule_of_function",
    "rule_of_method",
    "rule_of_module",
    "shape",
]
