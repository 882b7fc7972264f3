"""One call of every public tensor function and layer of OneFlow, for tests to run in a forked child.

``calls()`` goes through OneFlow's namespaces, so that a name that is new there needs an entry here, in
``FORMS`` (the arguments that it takes), in ``SPECIAL`` (a call of its own) or in ``LEFT_OUT`` (why it is
not called). A name without an entry is called with one square matrix.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from kdtrain.runtime import flow

Call = Callable[[], Any]

F, nn, init, linalg = flow.nn.functional, flow.nn, flow.nn.init, flow.linalg


def matrix() -> Any:
    """Values in 0.1..0.9, which suit logarithms, inverse functions and probabilities alike."""
    return (flow.rand(4, 4) * 0.8 + 0.1).requires_grad_()


def plain() -> Any:
    """The same without a gradient, for what changes its argument."""
    return flow.rand(4, 4) * 0.8 + 0.1


def vector() -> Any:
    return flow.rand(4).requires_grad_()


def stack() -> Any:
    return flow.rand(2, 4, 4).requires_grad_()


def images() -> Any:
    return flow.rand(2, 3, 8, 8).requires_grad_()


def volumes() -> Any:
    return flow.rand(2, 3, 4, 4, 4).requires_grad_()


def indices() -> Any:
    return flow.tensor([[0, 1, 2, 3]] * 4)


def mask() -> Any:
    return flow.tensor([[True, False, True, False]] * 4)


def labels() -> Any:
    return flow.tensor([0, 1, 2, 3])


FORMS: list[tuple[Callable[[], tuple[Any, ...]], str]] = [
    (lambda: (), "flow.seed flow.initial_seed flow.get_rng_state flow.is_grad_enabled"),
    (lambda: (4,), "flow.arange flow.empty flow.eye flow.hann_window flow.manual_seed flow.ones flow.rand "
                   "flow.randn flow.randperm flow.zeros"),
    (lambda: ((3, 4), 0.5), "flow.full"),
    (lambda: (matrix(), matrix()), """
        flow.add flow.allclose flow.atan2 flow.broadcast_like flow.div flow.eq flow.equal flow.floor_divide
        flow.fmod flow.ge flow.greater flow.greater_equal flow.gt flow.isclose flow.le flow.logaddexp
        flow.logical_and flow.logical_or flow.logical_xor flow.lt flow.matmul flow.maximum flow.minimum
        flow.mm flow.mul flow.ne flow.not_equal flow.pow flow.searchsorted flow.sub flow.tensordot
        Tensor.add Tensor.allclose Tensor.atan2 Tensor.div Tensor.eq Tensor.equal Tensor.expand_as
        Tensor.floor_divide Tensor.fmod Tensor.ge Tensor.gt Tensor.isclose Tensor.le Tensor.logaddexp
        Tensor.logical_and Tensor.logical_or Tensor.logical_xor Tensor.lt Tensor.matmul Tensor.maximum
        Tensor.minimum Tensor.mm Tensor.mul Tensor.ne Tensor.pow Tensor.reshape_as
        Tensor.sub Tensor.type_as Tensor.view_as
        F.binary_cross_entropy F.binary_cross_entropy_with_logits F.cosine_similarity F.kl_div F.l1_loss
        F.linear F.mse_loss F.pairwise_distance"""),
    (lambda: (plain(), plain()), "Tensor.add_ Tensor.copy_ Tensor.div_ Tensor.mul_ Tensor.sub_ flow.div_ "
                                 "flow.roc_auc_score"),
    (lambda: (matrix(), matrix(), matrix()), "flow.addcdiv flow.addcmul flow.addmm Tensor.addcdiv "
                                             "Tensor.addcmul Tensor.addmm F.triplet_margin_loss"),
    (lambda: (plain(), plain(), plain()), "Tensor.addcdiv_ Tensor.addcmul_"),
    (lambda: (stack(), stack()), "flow.bmm Tensor.bmm"),
    (lambda: (stack(), stack(), stack()), "flow.baddbmm"),
    (lambda: (vector(), vector()), "flow.dot Tensor.dot flow.meshgrid"),
    (lambda: (matrix(), vector()), "flow.mv Tensor.mv F.prelu"),
    (lambda: (images(), images()), "flow.cross Tensor.cross"),
    (lambda: (flow.rand(4),), "flow.erfinv Tensor.erfinv"),
    (lambda: (indices(),), "flow.bincount Tensor.bincount Tensor.triu_ F.one_hot"),
    (lambda: (plain(),), "flow.all flow.any Tensor.all Tensor.any"),
    (lambda: (0, 1, 5), "flow.linspace flow.logspace"),
    (lambda: (labels(), matrix()), "F.embedding"),
    (lambda: (labels().int(), plain(), 2), "flow.in_top_k Tensor.in_top_k"),
    (lambda: (plain(), flow.rand(4), 0.5), "flow.nms Tensor.nms"),
    (lambda: (mask(), matrix(), matrix()), "flow.where Tensor.where"),
    (lambda: (matrix(), mask()), "flow.masked_select Tensor.masked_select"),
    (lambda: (matrix(), mask(), 0.5), "flow.masked_fill Tensor.masked_fill"),
    (lambda: (plain(), mask(), 0.5), "flow.masked_fill_ Tensor.masked_fill_"),
    (lambda: ([matrix(), matrix()],), "flow.cat flow.concat flow.stack"),
    (lambda: (matrix(), 1), """
        flow.clamp flow.clamp_max flow.clamp_min flow.clip flow.cumprod flow.cumsum flow.flip flow.full_like
        flow.logsumexp flow.multinomial flow.randint_like flow.repeat_interleave flow.roll flow.split
        flow.topk flow.unsqueeze Tensor.clamp Tensor.clamp_max Tensor.clamp_min Tensor.clip Tensor.cumprod
        Tensor.cumsum Tensor.flip Tensor.logsumexp Tensor.new_empty Tensor.repeat_interleave Tensor.roll
        Tensor.split Tensor.unsqueeze F.elu F.leaky_relu"""),
    (lambda: (matrix(), 2), "flow.chunk flow.hsplit flow.tensor_split flow.vsplit Tensor.chunk"),
    (lambda: (plain(), 1), "flow.clamp_ flow.clamp_max_ flow.clamp_min_ flow.clip_ Tensor.clamp_ "
                           "Tensor.clamp_max_ Tensor.clamp_min_ Tensor.clip_ Tensor.fill_ init.constant_"),
    (lambda: (matrix(), 0, 1), """
        flow.movedim flow.select flow.swapaxes flow.swapdims flow.transpose Tensor.permute
        Tensor.swapaxes Tensor.swapdims Tensor.transpose F.hardtanh"""),
    (lambda: (matrix(), 0.5, 1), "flow.quantile"),
    (lambda: (matrix(), 1, 0, 2), "flow.narrow Tensor.narrow"),
    (lambda: (matrix(), 2, 1), "Tensor.softplus"),
    (lambda: (matrix(), (1, 0)), "flow.permute"),
    (lambda: (matrix(), (2, 8)), "flow.new_empty flow.repeat flow.reshape flow.tile flow.view Tensor.repeat "
                                 "Tensor.reshape Tensor.view F.pad flow.pad"),
    (lambda: (matrix(), (2, 4, 4)), "flow.expand Tensor.expand flow.broadcast_to Tensor.broadcast_to"),
    (lambda: (matrix(), (2, 2), (4, 1), 0), "flow.as_strided Tensor.as_strided"),
    (lambda: (matrix(), (3,), 2.0), "flow.new_full Tensor.new_full"),
    (lambda: (matrix(), 0, indices()), "flow.gather Tensor.gather"),
    (lambda: (matrix(), 0, labels()), "flow.index_select Tensor.index_select"),
    (lambda: (plain(), 0, labels(), plain()), "flow.index_add Tensor.index_add flow.index_add_ "
                                              "Tensor.index_add_"),
    (lambda: (matrix(), labels()), "flow.batch_gather F.cross_entropy"),
    (lambda: (matrix(), 0, indices(), matrix()), "flow.scatter flow.scatter_add Tensor.scatter_add"),
    (lambda: (plain(), 0, indices(), plain()), "Tensor.scatter_ Tensor.scatter_add_"),
    (lambda: (matrix(), flow.float64), "flow.cast Tensor.cast"),
    (lambda: (images(), 2), "flow.adaptive_avg_pool2d F.adaptive_avg_pool2d F.adaptive_max_pool2d "
                            "F.avg_pool2d F.max_pool2d F.interpolate F.unfold"),
    (lambda: (stack(), 2), "flow.adaptive_avg_pool1d F.adaptive_avg_pool1d F.adaptive_max_pool1d "
                           "F.avg_pool1d F.max_pool1d"),
    (lambda: (volumes(), 2), "flow.adaptive_avg_pool3d F.adaptive_avg_pool3d F.adaptive_max_pool3d "
                             "F.avg_pool3d F.max_pool3d"),
    (lambda: (plain(),), "init.eye_ init.kaiming_normal_ init.kaiming_uniform_ init.normal_ init.ones_ "
                         "init.orthogonal_ init.trunc_normal_ init.uniform_ init.xavier_normal_ "
                         "init.xavier_uniform_ init.zeros_"),
]  # fmt: skip


def _unpooled(name: str, inputs: Call) -> Call:
    def call() -> Any:
        pooled, where = getattr(F, name.replace("unpool", "pool"))(inputs(), 2, return_indices=True)
        return getattr(F, name)(pooled, where, 2)

    return call


def _along_rows(holder: Any, name: str) -> Any:
    return getattr(holder, name)(matrix(), dim=1)


def _recurrent(name: str) -> Any:
    outputs, _ = getattr(nn, name)(4, 3)(flow.rand(5, 2, 4).requires_grad_())
    return outputs


def _loss(name: str, arguments: Callable[[], tuple[Any, ...]]) -> Any:
    return getattr(nn, name)()(*arguments())


def _step(optimizer: type) -> Call:
    def call() -> None:
        weight = nn.Parameter(plain())
        made = optimizer([weight], lr=0.1)
        weight.square().sum().backward()
        made.step()

    return call


SPECIAL: dict[str, Call] = {
    **{f"{space}.{name}(dim)": partial(_along_rows, holder, name)
       for space, holder in (("flow", flow), ("Tensor", flow.Tensor))
       for name in ("argmax", "argmin", "argsort", "max", "mean", "median", "min", "norm", "prod",
                    "sort", "std", "sum", "var")},
    "flow.tensor": lambda: flow.tensor([[0.1, 0.2]]),
    "Tensor.new_tensor": lambda: plain().new_tensor([[0.1, 0.2]]),
    "Tensor.topk": lambda: matrix().topk(2, dim=1),
    "Tensor.bfloat16": lambda: plain().bfloat16(),
    "Tensor.scatter": lambda: plain().scatter(0, indices(), plain(), reduce="add"),
    "flow.threshold": lambda: flow.threshold(matrix(), threshold=0.5, value=0.0),
    "F.threshold": lambda: F.threshold(matrix(), threshold=0.5, value=0.0),
    "F.smooth_l1_loss": lambda: F.smooth_l1_loss(matrix(), plain(), beta=1.0, reduction="mean"),
    "F.sparse_softmax_cross_entropy": lambda: F.sparse_softmax_cross_entropy(labels(), matrix()),
    "F.triplet_margin_loss": lambda: F.triplet_margin_loss(
        matrix(), matrix(), matrix(), margin=1.0, p=2.0, eps=1e-6, swap=False, reduction="mean"
    ),
    "linalg.cross": lambda: linalg.cross(images(), images(), dim=1),
    "init.calculate_gain": lambda: init.calculate_gain("relu"),
    "init.calc_fan": lambda: init.calc_fan((4, 3), "fan_in", "NCHW"),
    "flow.einsum": lambda: flow.einsum("ij,jk->ik", matrix(), matrix()),
    "flow.normal": lambda: flow.normal(0.0, 1.0, (3, 4)),
    "flow.randint": lambda: flow.randint(0, 5, (3, 4)),
    "flow.broadcast_shapes": lambda: flow.broadcast_shapes((3, 4), (1, 4)),
    "flow.from_numpy": lambda: flow.from_numpy(np.ones((2, 3), np.float32)),
    "flow.from_dlpack": lambda: flow.from_dlpack(flow.to_dlpack(plain())),
    "flow.gather_nd": lambda: flow.gather_nd(matrix(), flow.tensor([[0], [1]])),
    "flow.scatter_nd": lambda: flow.scatter_nd(flow.tensor([[0], [2]]), matrix()[:2], (4, 4)),
    "flow.tensor_scatter_nd_update": lambda: flow.tensor_scatter_nd_update(
        matrix(), flow.tensor([[0], [2]]), matrix()[:2]
    ),
    "flow.slice": lambda: flow.slice(matrix(), [[0, 2, 1], [0, 4, 2]]),
    "flow.slice_update": lambda: flow.slice_update(plain(), plain()[:2], [[0, 2, 1], [0, 4, 1]]),
    "flow.is_nonzero": lambda: flow.is_nonzero(flow.tensor([1.0])),
    "flow.roi_align": lambda: flow.roi_align(images(), flow.tensor([[0.0, 0, 0, 4, 4]]), 1.0, 2, 2, 2, True),
    "flow.set_rng_state": lambda: flow.set_rng_state(flow.get_rng_state()),
    "flow.stft": lambda: flow.stft(flow.rand(64), 16, window=flow.hann_window(16), return_complex=False),
    "Tensor.backward": lambda: matrix().sum().backward(),
    "Tensor.item": lambda: flow.ones(1).item(),
    "Tensor.register_hook": lambda: matrix().register_hook(lambda gradient: gradient),
    "Tensor.unfold": lambda: matrix().unfold(0, 2, 1),
    "Tensor.xavier_normal_": lambda: plain().xavier_normal_(1.0, data_format="NCHW"),
    "Tensor.xavier_uniform_": lambda: plain().xavier_uniform_(1.0, data_format="NCHW"),
    "F.affine_grid": lambda: F.affine_grid(flow.rand(2, 2, 3).requires_grad_(), (2, 3, 8, 8)),
    "F.grid_sample": lambda: F.grid_sample(images(), flow.rand(2, 4, 4, 2).requires_grad_()),
    "F.batch_norm": lambda: F.batch_norm(
        images(), flow.zeros(3), flow.ones(3), flow.ones(3), flow.zeros(3), training=True
    ),
    "F.layer_norm": lambda: F.layer_norm(matrix(), (4,), flow.ones(4), flow.zeros(4)),
    "F.fold": lambda: F.fold(flow.rand(2, 12, 16).requires_grad_(), (8, 8), 2, stride=2),
    "F.conv1d": lambda: F.conv1d(stack(), flow.rand(3, 4, 2).requires_grad_()),
    "F.conv2d": lambda: F.conv2d(images(), flow.rand(4, 3, 3, 3).requires_grad_()),
    "F.conv3d": lambda: F.conv3d(volumes(), flow.rand(4, 3, 2, 2, 2).requires_grad_()),
    "F.conv_transpose1d": lambda: F.conv_transpose1d(stack(), flow.rand(4, 3, 2).requires_grad_()),
    "F.conv_transpose2d": lambda: F.conv_transpose2d(images(), flow.rand(3, 4, 3, 3).requires_grad_()),
    "F.conv_transpose3d": lambda: F.conv_transpose3d(volumes(), flow.rand(3, 4, 2, 2, 2).requires_grad_()),
    "F.deform_conv2d": lambda: F.deform_conv2d(
        images(), flow.zeros(2, 18, 6, 6), flow.rand(4, 3, 3, 3), mask=flow.ones(2, 9, 6, 6)
    ),
    "F.max_unpool1d": _unpooled("max_unpool1d", stack),
    "F.max_unpool2d": _unpooled("max_unpool2d", images),
    "F.max_unpool3d": _unpooled("max_unpool3d", volumes),
    "F.upsample": lambda: F.upsample(images(), scale_factor=2),
    "F.ctc_greedy_decoder": lambda: F.ctc_greedy_decoder(flow.rand(5, 2, 4), flow.tensor([5, 5])),
    "utils.clip_grad_norm_": lambda: nn.utils.clip_grad_norm_([_with_gradient()], 1.0),
    "utils.clip_grad_value_": lambda: nn.utils.clip_grad_value_([_with_gradient()], 1.0),
    "utils.weight_norm": lambda: nn.utils.weight_norm(nn.Linear(4, 4))(matrix()),
    "utils.remove_weight_norm": lambda: nn.utils.remove_weight_norm(nn.utils.weight_norm(nn.Linear(4, 4))),
    **{f"optim.{name}": _step(getattr(flow.optim, name))
       for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "LAMB", "RMSprop", "SGD")},
    **{f"nn.{name}": partial(_recurrent, name) for name in ("RNN", "LSTM", "GRU")},
    "nn.RNNCell": lambda: nn.RNNCell(4, 3)(matrix(), flow.zeros(4, 3)),
    "nn.GRUCell": lambda: nn.GRUCell(4, 3)(matrix(), flow.zeros(4, 3)),
    "nn.LSTMCell": lambda: nn.LSTMCell(4, 3)(matrix(), (flow.zeros(4, 3), flow.zeros(4, 3))),
    "nn.Quantization": lambda: nn.Quantization()(plain(), *nn.MinMaxObserver()(plain())),
    "nn.FakeQuantization": lambda: nn.FakeQuantization()(plain(), *nn.MinMaxObserver()(plain())),
    "nn.MovingAverageMinMaxObserver": lambda: nn.MovingAverageMinMaxObserver(stop_update_after_iters=3)(
        plain(), flow.tensor([0])
    ),
    **{f"nn.{name}": partial(_loss, name, arguments)
       for arguments, names in (
           (lambda: (matrix(), plain()), """BCELoss BCEWithLogitsLoss CosineSimilarity KLDivLoss L1Loss
               MSELoss PairwiseDistance SmoothL1Loss"""),
           (lambda: (matrix(), labels()), "CombinedMarginLoss CrossEntropyLoss NLLLoss"),
           (lambda: (matrix(), matrix(), plain()), "MarginRankingLoss"),
           (lambda: (matrix(), matrix(), matrix()), "TripletMarginLoss"),
       ) for name in names.split()},
    "nn.CTCLoss": lambda: nn.CTCLoss()(
        flow.rand(5, 2, 4).log_softmax(2).requires_grad_(), flow.tensor([[1, 2], [2, 3]]),
        flow.tensor([5, 5]), flow.tensor([2, 2]),
    ),
    "nn.Embedding": lambda: nn.Embedding(5, 3)(labels()),
    "nn.Fold": lambda: nn.Fold((8, 8), 2, stride=2)(flow.rand(2, 12, 16).requires_grad_()),
    "nn.MaxUnpool1d": lambda: nn.MaxUnpool1d(2)(*nn.MaxPool1d(2, return_indices=True)(stack())),
    "nn.MaxUnpool2d": lambda: nn.MaxUnpool2d(2)(*nn.MaxPool2d(2, return_indices=True)(images())),
    "nn.MaxUnpool3d": lambda: nn.MaxUnpool3d(2)(*nn.MaxPool3d(2, return_indices=True)(volumes())),
    "nn.Sequential": lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU())(matrix()),
    "nn.ModuleList": lambda: nn.ModuleList([nn.Linear(4, 3)])[0](matrix()),
    "nn.ModuleDict": lambda: nn.ModuleDict({"fc": nn.Linear(4, 3)})["fc"](matrix()),
    "nn.ParameterList": lambda: nn.ParameterList([nn.Parameter(plain())])[0].sum(),
    "nn.ParameterDict": lambda: nn.ParameterDict({"w": nn.Parameter(plain())})["w"].sum(),
    "nn.Parameter": lambda: nn.Parameter(plain()).sum(),
    "nn.FusedMLP": lambda: nn.FusedMLP(4, [5], 3)(matrix()),
}  # fmt: skip


def _with_gradient() -> Any:
    weight = nn.Parameter(plain())
    weight.square().sum().backward()
    return weight


LAYERS: list[tuple[Call, tuple[Any, ...], str]] = [
    (matrix, (), """CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid
        LogSoftmax Mish PReLU QuickGELU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softplus Softshrink Softsign
        Tanh Dropout Flatten"""),
    (matrix, (0.1, 20.0), "Threshold"),
    (matrix, (4,), "LayerNorm BatchNorm1d RMSNorm"),
    (matrix, (4, 3), "Linear"),
    (stack, (2,), "AdaptiveAvgPool1d AdaptiveMaxPool1d AvgPool1d MaxPool1d"),
    (images, (2,), "AdaptiveAvgPool2d AdaptiveMaxPool2d AvgPool2d MaxPool2d ReflectionPad2d ReplicationPad2d "
                   "Unfold ZeroPad2d"),
    (volumes, (2,), "AdaptiveAvgPool3d AdaptiveMaxPool3d AvgPool3d MaxPool3d"),
    (stack, (2,), "ReflectionPad1d ReplicationPad1d"),
    (stack, (2, 0.5), "ConstantPad1d"),
    (images, (2, 0.5), "ConstantPad2d"),
    (volumes, (2, 0.5), "ConstantPad3d"),
    (stack, (4, 3, 2), "Conv1d ConvTranspose1d QatConv1d"),
    (images, (3, 4, 3), "Conv2d ConvTranspose2d QatConv2d"),
    (volumes, (3, 4, 2), "Conv3d ConvTranspose3d QatConv3d"),
    (stack, (4,), "InstanceNorm1d"),
    (matrix, (4,), "FusedBatchNorm1d"),
    (images, (3,), "BatchNorm2d FusedBatchNorm2d InstanceNorm2d"),
    (volumes, (3,), "BatchNorm3d FusedBatchNorm3d InstanceNorm3d"),
    (images, (3, 3), "GroupNorm"),
    (images, (None, 2), "Upsample UpsamplingBilinear2d UpsamplingNearest2d"),
    (lambda: flow.rand(2, 4, 3, 3).requires_grad_(), (2,), "PixelShuffle"),
]  # fmt: skip


def _because(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


CRASHES = _because("touches CUDA, and aborts the process without a driver", "Tensor.cuda Tensor.pin_memory")
"""What ends the process by SIGABRT, in a child and elsewhere, and why."""

REFUSED = (
    _because("its kernel exists for GPUs only", "flow.nms flow.roi_align Tensor.nms nn.RMSNorm")
    | _because(
        "raises in OneFlow 0.9.0, whatever it is given",
        """flow.is_deprecated linalg.diagonal Tensor.cross Tensor.get_device Tensor.is_consistent
        Tensor.to_consistent Tensor.xavier_normal_ Tensor.xavier_uniform_
        F.dropout1d F.dropout2d F.dropout3d nn.Dropout1d nn.Dropout2d nn.Dropout3d""",
    )
    | _because(
        "needs processes that OneFlow's launcher has started",
        """flow.global_to_global flow.local_to_global flow.to_global flow.to_local Tensor.global_to_global
        Tensor.local_to_global Tensor.to_global Tensor.to_local Tensor.check_meta_consistency
        Tensor.global_id""",
    )
)
"""What raises an error, in a child and elsewhere, and why."""

LEFT_OUT = (
    _because(
        "calculates nothing, or changes a setting of the process",
        """flow.Generator flow.autocast_decorator flow.clear_autocast_cache flow.dtypes flow.ignore
        flow.script flow.convert_oneflow_dtype_to_numpy_dtype flow.get_autocast_cpu_dtype
        flow.get_autocast_gpu_dtype flow.get_default_dtype flow.is_autocast_cache_enabled
        flow.is_autocast_enabled flow.load flow.save
        flow.oneflow_deprecate flow.set_autocast_cache_enabled flow.set_autocast_cpu_dtype
        flow.set_autocast_enabled flow.set_autocast_gpu_dtype flow.set_default_dtype
        flow.set_default_tensor_type flow.set_num_threads flow.set_printoptions init.get_data_format
        nn.Module nn.RNNBase nn.RNNCellBase""",
    )
    | _because(
        "reads OneFlow's record files",
        """flow.decode_onerec flow.gen_tensor_buffer flow.tensor_buffer_to_list_of_tensors
        flow.tensor_buffer_to_tensor flow.tensor_to_tensor_buffer nn.COCOReader nn.CoinFlip
        nn.CropMirrorNormalize nn.GPTIndexedBinDataReader nn.OFRecordBytesDecoder nn.OFRecordImageDecoder
        nn.OFRecordImageDecoderRandomCrop nn.OFRecordImageGpuDecoderRandomCropResize nn.OFRecordRawDecoder
        nn.OFRecordReader nn.OfrecordRawDecoder nn.OfrecordReader nn.OneRecReader nn.RawReader""",
    )
    | _because(
        "needs processes that OneFlow's launcher has started",
        "flow.distributed_partial_fc_sample nn.AllReduce nn.DistributedPariticalFCSample nn.SyncBatchNorm",
    )
    | _because("is the raw operation under F.deform_conv2d", "flow.deform_conv2d")
    | _because("has another name by now, and warns", "nn.RMSLayerNorm")
    | _because("hangs: it runs in threads that a fork does not copy", "nn.Graph")
)
"""The names that are not called, and why."""


def calls() -> dict[str, Call]:
    """Returns a call for each public name of OneFlow's that calculates, but for those in LEFT_OUT."""
    found = dict(_functions()) | dict(_layers())
    return {name: call for name, call in (found | SPECIAL).items() if name not in LEFT_OUT}


def _functions() -> Iterator[tuple[str, Call]]:
    forms = {name: form for form, names in FORMS for name in names.split()}
    spaces = {"flow": flow, "Tensor": flow.Tensor, "F": F, "linalg": linalg, "init": init, "utils": nn.utils}
    for space, holder in spaces.items():
        for name in dir(holder):
            function = getattr(holder, name)
            if name.startswith("_") or not callable(function) or inspect.isclass(function):
                continue
            form = forms.get(f"{space}.{name}", _default(name))
            yield f"{space}.{name}", partial(_apply, function, form)


def _default(name: str) -> Callable[[], tuple[Any, ...]]:
    return (lambda: (plain(),)) if name.endswith("_") else (lambda: (matrix(),))


def _layers() -> Iterator[tuple[str, Call]]:
    forms = {name: (inputs, arguments) for inputs, arguments, names in LAYERS for name in names.split()}
    for name in dir(nn):
        layer = getattr(nn, name)
        if inspect.isclass(layer):
            inputs, arguments = forms.get(name, (images, ()))
            yield f"nn.{name}", partial(_run_layer, layer, arguments, inputs)


def _apply(function: Callable[..., Any], form: Callable[[], tuple[Any, ...]]) -> Any:
    return function(*form())


def _run_layer(layer: Callable[..., Any], arguments: tuple[Any, ...], inputs: Call) -> Any:
    return layer(*arguments)(inputs())
