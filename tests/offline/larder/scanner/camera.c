/* Takes pictures until one of them shows a barcode. */

#include "camera.h"

/* Frames that are looked at in one second; more of them only warm the phone. */
#define FRAMES 12

int camera_wait_for_code(struct camera *camera, struct widths *widths)
{
    for(;;) {
        struct frame *frame = camera_next(camera, 1000 / FRAMES);
        if(!frame)
            return -1;
        if(frame_find_bars(frame, widths))
            return 0;
    }
}
