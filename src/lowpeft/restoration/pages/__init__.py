"""Self-contained HTML pages: before/after sliders, pictures, tables, text, and commands to copy.

A page is one file with its images in it, and needs no network. Images are tensors (3, H, W), uint8 or float 0..1, or
Pillow images, and are shown pixel for pixel. The page of a stereo run, for instance:

```python
methods = ("bicubic", "frozen", "adapted", "same view", "truth")
figures = [["PSNR in dB", *methods[:4]], ["scene 1", "26.54", "26.58", "28.66", "28.12"]]
left = dict(zip(methods, left_images, strict=True))
right = dict(zip(methods, right_images, strict=True))
write_page(
    "comparison.html",
    "Two noisy cameras",
    [
        Text("One scene by every method. Drag the line, or choose other images above it."),
        Slider(left, "Left view", shown=("frozen", "adapted")),
        Slider(right, "Right view", shown=("same view", "adapted")),
        Table(figures, "Mean of both views"),
        Heading("Disparity"),
        Pictures({"true": true_disparity, "read from the attention": attended}, "Bright is near."),
        Heading("What next"),
        Code("lowpeft train parallax --weights demo --data DIR"),
        Code("lowpeft evaluate --weights demo --adapter adapter --data DIR"),
        Code("lowpeft enhance --weights demo --adapter adapter LEFT.png RIGHT.png"),
    ],
)
```
"""

from .page import write_page
from .parts import Code, Heading, Part, Pictures, Slider, Table, Text
from .plots import plot

__all__ = ["Code", "Heading", "Part", "Pictures", "Slider", "Table", "Text", "plot", "write_page"]
