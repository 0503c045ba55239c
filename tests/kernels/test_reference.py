"""The reference against independent formulas: it is what every other implementation is compared with."""

import cases
import pytest
import torch
from torch.nn import functional

from loraplex.kernels.reference import ReferenceKernels
