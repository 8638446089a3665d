"""Stereo scenes without a download: layers cut from scikit-image's photographs, seen by two cameras.

Construction. A scene is a stack of layers, far to near. The background is a photograph that fills the view; its
disparity grows from top to bottom. Three to five pieces of photographs lie in front of it, each with a smooth random
outline, a slanted plane and a slight random tint. Each layer has its own band of disparities, and nearer layers have
larger ones, so painting far to near gives the correct occlusion at every pixel. Disparities d = x_left - x_right are
positive and at most 40 HR px (`MAX_DISPARITY_PX`). `layers` has the geometry, `making` the random choices.

Detail. A photograph is shown at 1.2 to 1.6 of its pixels per HR pixel (a background at fewer if it would not fill the
view otherwise) and is never enlarged. From 1.2 on, the views are as sharp, pixel for pixel, as the photographs. Each
camera averages 2x2 samples per HR pixel from the full-resolution photograph (Keys' cubic, a = -0.5), like the area of a
sensor pixel. The cameras sample at different sub-pixel positions, so one LR view contains detail that the other lost;
stereo super-resolution depends on this. Outlines are anti-aliased over one HR pixel.

Held-out scenes. Training and test scenes are cut from different photographs (`PHOTOGRAPHS`); none is used in both.
The photographs are read from the installed scikit-image package, never downloaded.
"""

from .making import DemoScene, held_out_scenes, make_scene, train_scenes, write_scenes

__all__ = ["DemoScene", "held_out_scenes", "make_scene", "train_scenes", "write_scenes"]
