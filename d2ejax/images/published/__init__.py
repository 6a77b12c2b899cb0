"""Published networks of the field, from the state dicts that PyTorch saved.

    arrays = state_dicts.read("vgg13_bn.pt")
    classifier = vgg.from_state_dict(arrays)
    logits = classifier.module.apply(classifier.variables, images)

They are frozen: batch norm uses its running statistics, and there is no dropout. Images are
float32 `(n, height, width, channels)` in [-1, 1]. The weights themselves are not distributed
here, and their licences are those of their authors.
"""

from d2ejax.images.published import dcgan as dcgan
from d2ejax.images.published import resnet as resnet
from d2ejax.images.published import sn_gan as sn_gan
from d2ejax.images.published import state_dicts as state_dicts
from d2ejax.images.published import stylegan2 as stylegan2
from d2ejax.images.published import vgg as vgg
from d2ejax.images.published.state_dicts import Imported as Imported
