"""A study for trying the commands: scikit-learn's digits for two epochs. It takes minutes and needs no download."""

from experiments.studies.study import Method, Study

STUDY = Study(
    name="digits",
    purpose="Does everything work here?",
    methods=(
        Method(
            "strided", "digits_hybrid", ("resnet.Resnet.pooling_cls = None", "resnet.Resnet.head_pooling_cls = None")
        ),
        Method("diffstride", "digits_hybrid", ("resnet.Resnet.head_pooling_cls = None",)),
        Method("hybrid", "digits_hybrid"),
        Method(
            "strided_matched_maps",
            "digits_hybrid",
            ("resnet.Resnet.head_pooling_cls = None",),
            matched_to="diffstride",
            match="maps",
        ),
    ),
    data=("digits",),
    strides=((2, 2, 2), (3, 2, 3)),
    bindings=(
        "train.train.num_epochs = 2",
        "tf.keras.optimizers.schedules.CosineDecay.decay_steps = 80",
        "resnet.resnet18.width = 4",
    ),
    baseline="diffstride",
)
