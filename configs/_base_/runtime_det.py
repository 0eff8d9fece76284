"""What every detection run has: its environment, log, pictures and checkpoints."""
default_scope = 'mmdet'
env_cfg = dict(
    cudnn_benchmark=False,  # images of many sizes
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
visualizer = dict(
    type='DetLocalVisualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
    name='visualizer')
custom_hooks = [dict(type='mmattn.CurvesHook', metric='coco/bbox_mAP')]
log_processor = dict(by_epoch=False)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
