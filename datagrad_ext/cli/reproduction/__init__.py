"""The comparison behind `python -m datagrad_ext reproduce`.

    methods     what is compared: an objective and the ranges of its hyper-parameters
    settings    network, loss, budget and attack sizes, by name
    search      draws of hyper-parameters, and the choice among them
    trial       one training and its figures: task -> record
    pool        tasks on several processes
    store       records as JSON lines, so that a comparison can be resumed
    statistics  means, intervals, paired differences
    claims      what of the paper's abstract held
    page        the report in Markdown, with `picture`
"""
