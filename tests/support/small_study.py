"""A study of a few cells, and its rows."""

from experiments.studies.study import Method, Study

SMALL = Study(
    name="small",
    purpose="For tests.",
    methods=(
        Method("strided", "{data}_hybrid"),
        Method("learned", "{data}_hybrid"),
        Method("matched", "{data}_hybrid", matched_to="learned", match="maps"),
    ),
    data=("digits",),
    strides=((2, 2, 2), (3, 2, 3)),
    seeds=(1, 2, 3),
    baseline="learned",
)
