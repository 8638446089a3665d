"""Export for other programs: a plain state dict (spandrel, chaiNNer, PyTorch), or an ONNX graph."""

from .onnx_file import check_onnx, export_onnx
from .onnx_graph import OPSET, OPSETS
from .result import Exported, checked_path
from .state_dict import SUFFIXES, export_state_dict

__all__ = ["OPSET", "OPSETS", "SUFFIXES", "Exported", "check_onnx", "checked_path", "export_onnx", "export_state_dict"]
